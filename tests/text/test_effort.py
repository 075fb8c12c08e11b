import pytest

from loire.base.errors import RequestError
from loire.text.effort import Effort, effort_variables

EFFORTS: tuple[Effort, ...] = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("flag", ["enable_thinking", "thinking"])
def test_a_flag_is_switched(effort: Effort, flag: str) -> None:
    chosen = effort_variables(effort, {flag, "tools"}, f"{{% if {flag} %}}", thinks=True)
    assert chosen == {flag: effort != "none"}


@pytest.mark.parametrize(
    ("effort", "level"),
    [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("max", "high")],
)
def test_a_level_is_the_nearest_one(effort: Effort, level: str) -> None:
    source = "{% if reasoning_effort == 'low' or reasoning_effort == 'high' %}"
    chosen = effort_variables(effort, {"reasoning_effort"}, source, thinks=True)
    assert chosen == {"reasoning_effort": level}


def test_a_level_that_the_template_writes_is_taken_as_it_is() -> None:
    source = "{% if reasoning_effort not in ('none', 'xhigh') %}"
    for effort in ("none", "xhigh"):
        chosen = effort_variables(effort, {"reasoning_effort"}, source, thinks=True)
        assert chosen == {"reasoning_effort": effort}


def test_thoughts_without_a_switch_cannot_be_switched_off() -> None:
    with pytest.raises(RequestError, match="always thinks") as caught:
        effort_variables("none", {"reasoning_effort"}, "{{ reasoning_effort }}", thinks=True)
    assert caught.value.param == "reasoning_effort"
    with pytest.raises(RequestError, match="always thinks"):
        effort_variables("none", {"tools"}, "", thinks=True)


def test_a_model_that_does_not_think_has_nothing_to_switch() -> None:
    assert effort_variables("none", {"tools"}, "", thinks=False) == {}
    assert effort_variables("high", {"tools"}, "", thinks=False) is None
