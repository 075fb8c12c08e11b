"""Messages between the engine's process and its supervisor: all fields cross, nonsense does not."""

import random
import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.base.step import TokenLogprobs
from loire.base.structured_outputs import StructuredOutputs
from loire.engine import wire
from loire.engine.wire import (
    Abort,
    Beat,
    Begun,
    FrameReader,
    FromEngine,
    News,
    Submit,
    ToEngine,
    WireError,
    frame,
    read_from_engine,
    read_to_engine,
)

PARAMS = SamplingParams(
    n=2,
    temperature=0.5,
    top_k=7,
    top_p=0.25,
    min_p=0.125,
    repetition_penalty=1.5,
    frequency_penalty=-1.0,
    presence_penalty=1.0,
    logit_bias={3: 1.5, 4: -100.0},
    seed=-(2**63),
    max_tokens=None,
    min_tokens=2,
    stop=["a", "é"],
    stop_token_ids=[5],
    include_stop_str_in_output=True,
    ignore_eos=True,
    logprobs=2,
    prompt_logprobs=1,
    skip_special_tokens=False,
    structured_outputs=StructuredOutputs(json={"type": "object"}),
)
REQUEST = EngineRequest(
    request_id="r",
    prompt_token_ids=(1, 2, 3),
    params=PARAMS,
    seed=2**64 - 1,
    stop_token_ids=(5, 6),
    cache_salt="salt",
    adapter="adapter",
    output_token_ids=((), (1,)),
)
NEWS = News(
    (
        SequenceUpdate("r", 0, (1,), (TokenLogprobs((1, 2), (-0.5, float("-inf")), 1),)),
        SequenceUpdate("r", 1, (2,), finish_reason="stop", stop_reason=2, first_scheduled_s=1.5),
        SequenceUpdate("q", 0, finish_reason="error", error="why"),
    ),
    record=None,
    num_requests=3,
    blocks_in_use=7,
)
TO_ENGINE: list[ToEngine] = [Submit(REQUEST, (1,)), Abort("r"), Abort("r", 1)]
FROM_ENGINE: list[FromEngine] = [NEWS, Begun(("r", "q")), Beat()]


def bodies(data: bytes, sizes: list[int] | None = None) -> list[bytes]:
    """The frames of data that comes in pieces of these sizes, and then the rest."""
    reader = FrameReader()
    found: list[bytes] = []
    for size in sizes or []:
        found += reader.feed(data[:size])
        data = data[size:]
    return found + list(reader.feed(data))


def test_every_message_comes_as_it_was() -> None:
    to_engine = b"".join(map(frame, TO_ENGINE))
    assert [read_to_engine(body) for body in bodies(to_engine)] == TO_ENGINE
    from_engine = b"".join(map(frame, FROM_ENGINE))
    assert [read_from_engine(body) for body in bodies(from_engine)] == FROM_ENGINE
    [submit, *_] = [read_to_engine(body) for body in bodies(to_engine)]
    assert isinstance(submit, Submit)
    assert submit.request.params.logit_bias == {3: 1.5, 4: -100.0}
    with pytest.raises(TypeError):
        submit.request.params.logit_bias[3] = 0  # type: ignore[index]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30))
def test_frames_may_come_in_any_pieces(sizes: list[int]) -> None:
    data = b"".join(map(frame, FROM_ENGINE))
    assert [read_from_engine(body) for body in bodies(data, sizes)] == FROM_ENGINE


def test_a_length_beyond_the_bound_is_refused_before_it_is_held() -> None:
    with pytest.raises(WireError, match="4,294,967,295 bytes"):
        bodies(struct.pack("<I", 2**32 - 1) + b"x")


def test_a_message_beyond_the_bound_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 100)
    with pytest.raises(WireError, match="at most 100"):
        frame(Submit(REQUEST))


def test_text_with_half_a_surrogate_pair_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="Abort cannot be sent"):
        frame(Abort("\ud800"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "Nonsense"}),
        msgspec.msgpack.encode({"type": "Abort"}),
        msgspec.msgpack.encode({"type": "Abort", "request_id": 5}),
        msgspec.msgpack.encode({"type": "Begun", "request_ids": ["r"]}),
        msgspec.msgpack.encode(
            {
                "type": "Submit",
                "request": {
                    "request_id": "r",
                    "prompt_token_ids": [1],
                    "params": {"temperature": -1.0},
                    "seed": 1,
                },
            }
        ),
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="is no message"):
        read_to_engine(body)


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False))
def test_damaged_frames_are_messages_or_errors(rng: random.Random) -> None:
    body = bytearray(msgspec.msgpack.encode({}) + frame(Submit(REQUEST))[4:])[1:]
    for _ in range(rng.randint(1, 4)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    # Whatever else it raised would end the test.
    with suppress(WireError):
        read_to_engine(bytes(body[: rng.choice([len(body), rng.randrange(len(body))])]))
