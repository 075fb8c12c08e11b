"""SamplingParams refuses what cannot be meant, and says which field and which number."""

import pytest

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -2),
        ("top_p", 1.1),
        ("top_p", 0.0),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
    ],
)
def test_out_of_range(field: str, value: float) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_contradictions() -> None:
    with pytest.raises(RequestError, match=r"min_tokens \(9\) exceeds max_tokens \(8\)"):
        SamplingParams(min_tokens=9, max_tokens=8)
    with pytest.raises(RequestError, match="empty string"):
        SamplingParams(stop=["a", ""])
    with pytest.raises(RequestError, match=r"of 3 .* -100.0 and 100.0, but is 101"):
        SamplingParams(logit_bias={3: 101})
    with pytest.raises(RequestError, match="but is -1"):
        SamplingParams(logit_bias={-1: 1})


def test_forms_that_are_accepted() -> None:
    params = SamplingParams(stop="END", top_k=-1, logit_bias={"7": -100})  # type: ignore[dict-item]
    assert params.stop == ("END",)
    assert params.top_k == 0
    assert params.logit_bias == {7: -100.0}
    assert SamplingParams(temperature=0.0).greedy
    assert not SamplingParams(temperature=0.01).greedy
    assert SamplingParams(prompt_logprobs=0).reads_whole_prompt
    assert not SamplingParams().reads_whole_prompt


def test_is_not_changed_from_outside() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 2.0
    assert params.logit_bias[1] == 1.0
    with pytest.raises(TypeError):
        params.logit_bias[1] = 3.0  # type: ignore[index]
    with pytest.raises(AttributeError):
        params.n = 2  # type: ignore[misc]
