"""When somebody who gives no sign of life is taken for silent."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loire.engine import pulse as module
from loire.engine.pulse import BEAT_S, Pulse


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_silence_is_so_many_looks_in_vain(heard: list[bool], most: int) -> None:
    async def play() -> None:
        told: list[float] = []
        pulse = Pulse(most * BEAT_S, told.append)
        pulse.start()
        expected, num_in_vain = [], 0
        for came in heard:
            if came:
                pulse.heard()
            num_in_vain = 1 if came else num_in_vain + 1
            pulse.look()
            if num_in_vain >= most:
                expected.append(num_in_vain * BEAT_S)
            assert pulse.is_silent == (num_in_vain >= most)
        assert told == expected
        pulse.stop()
        assert not pulse.is_silent

    asyncio.run(play())


def test_time_in_which_this_process_stood_still_is_no_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)

    async def play() -> None:
        told: list[float] = []
        pulse = Pulse(0.1, told.append)
        pulse.start()
        time.sleep(0.3)
        await asyncio.sleep(0)
        assert told == []
        while not told:
            await asyncio.sleep(0.01)
        assert told[0] == pytest.approx(0.1)
        pulse.stop()

    asyncio.run(play())
