"""Lower priorities go first; background work fills what is left, and loses nothing but time."""

from collections.abc import Iterable

import pytest

from loire.base.cache_geometry import one_group
from loire.base.config import BACKGROUND_ALONE
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor, expected_tokens

WINDOW = 256
BACKGROUND_TOKENS = 4


def request(
    name: str, priority: int = 0, *, prompt: Iterable[int] = range(20, 30), max_tokens: int = 8
) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        params=SamplingParams(max_tokens=max_tokens),
        seed=1,
        priority=priority,
    )


class Engine:
    """An engine without a model, and what came out of it."""

    def __init__(self, *, num_blocks: int = 256, slots: int = 4, budget: int = 64) -> None:
        self.scheduler = Scheduler(
            PagedAllocator(num_blocks, one_group(4), prefix_caching=True),
            Continuous(slots),
            max_num_batched_tokens=budget,
            max_model_len=WINDOW,
            background_tokens=BACKGROUND_TOKENS,
        )
        self.executor = FakeExecutor(num_blocks, one_group(4))
        self.core = EngineCore(self.scheduler, self.executor)
        self.requests: list[EngineRequest] = []
        self.tokens: dict[str, list[int]] = {}
        self.ended: list[str] = []

    def add(self, *requests: EngineRequest) -> None:
        for added in requests:
            self.requests.append(added)
            self.core.add(added)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for update in self.core.step():
                self.tokens.setdefault(update.request_id, []).extend(update.token_ids)
                if update.finish_reason is not None:
                    self.ended.append(update.request_id)

    def finish(self) -> None:
        for _ in range(2000):
            if not self.core.has_work:
                break
            self.step()
        for sent in self.requests:
            assert self.tokens[sent.request_id] == expected_tokens(sent, 0, WINDOW)[0]
        assert self.scheduler.allocator.counts.in_use == 0

    def rows(self) -> dict[str, int]:
        """Tokens that each request had in the latest step."""
        return {
            slot.request_id: slot.num_prefill_tokens + slot.num_decode_tokens
            for slot in self.core.records[-1].slots
        }


def test_the_queue_is_ordered_by_priority_then_arrival() -> None:
    engine = Engine(slots=1)
    engine.add(request("first"))
    engine.step()
    engine.add(request("late"), request("a", 2), request("b", 1), request("c", 2))
    engine.add(request("urgent", -5, prompt=range(30, 40)))
    engine.finish()
    # It takes the place of the one that runs, which then goes on before all others.
    assert engine.ended == ["urgent", "first", "late", "b", "a", "c"]


def test_equal_priorities_do_not_preempt_each_other() -> None:
    engine = Engine(slots=2)
    engine.add(*(request(f"r{i}", 3) for i in range(6)))
    engine.finish()
    assert engine.scheduler.num_preemptions == 0
    assert engine.ended == [f"r{i}" for i in range(6)]


def test_an_urgent_request_takes_the_slot_of_the_last_background_one() -> None:
    engine = Engine(slots=3)
    engine.add(*(request(f"background-{i}", 1, max_tokens=40) for i in range(3)))
    engine.step(10)
    engine.add(request("urgent", prompt=range(30, 40)))
    engine.step()
    assert engine.rows()["urgent"] == 10, "its whole prompt is computed at once"
    assert "background-2" not in engine.rows()
    engine.finish()
    assert engine.ended[0] == "urgent"
    assert engine.scheduler.num_preemptions == 1


def test_an_urgent_request_takes_memory_from_background_ones() -> None:
    engine = Engine(num_blocks=WINDOW // 4, slots=8)
    # 15 blocks each in the end: the four of them nearly fill the 64 blocks.
    for i in range(4):
        prompt = [i + 1] * 40
        engine.add(request(f"background-{i}", 1, prompt=prompt, max_tokens=20))
    engine.step(12)
    engine.add(request("urgent", prompt=[9] * 100, max_tokens=4))
    engine.step(2)
    assert "urgent" in engine.rows()
    engine.finish()
    assert engine.ended[0] == "urgent"
    assert engine.scheduler.num_preemptions >= 1


def test_background_rows_share_few_tokens_beside_others() -> None:
    engine = Engine(slots=16)
    engine.add(*(request(f"background-{i}", 1, prompt=[i + 1] * 60) for i in range(8)))
    engine.add(request("urgent", max_tokens=30))
    for _ in range(30):
        engine.step()
        rows = engine.rows()
        assert rows.pop("urgent") > 0
        assert sum(rows.values()) == BACKGROUND_TOKENS, "neither more, nor left idle"
    engine.finish()


def test_a_step_of_background_work_alone_is_short() -> None:
    engine = Engine(slots=16, budget=1024)
    engine.add(*(request(f"background-{i}", 1, prompt=[i + 1] * 60) for i in range(8)))
    engine.step()
    assert sum(engine.rows().values()) == BACKGROUND_TOKENS * BACKGROUND_ALONE
    engine.finish()


def test_background_rows_take_turns() -> None:
    engine = Engine(slots=16)
    names = [f"background-{i}" for i in range(10)]
    engine.add(*(request(name, 1, prompt=[i + 1], max_tokens=100) for i, name in enumerate(names)))
    engine.step(5)
    before = {name: len(engine.tokens[name]) for name in names}
    engine.add(request("urgent", max_tokens=200))
    engine.step(50)
    gained = [len(engine.tokens[name]) - before[name] for name in names]
    assert sum(gained) == 50 * BACKGROUND_TOKENS
    assert max(gained) - min(gained) <= 1
    engine.finish()


def test_an_urgent_request_does_not_wait_for_a_background_prefix() -> None:
    shared = [7] * 200
    engine = Engine(slots=8, budget=256)
    engine.add(request("background", 1, prompt=[*shared, 20]))
    engine.step()
    assert engine.rows() == {"background": BACKGROUND_TOKENS * BACKGROUND_ALONE}
    engine.add(request("urgent", prompt=[*shared, 21]), request("second", prompt=[*shared, 22]))
    engine.step()
    # All but what the background request has computed; the second one waits for the first.
    assert engine.rows()["urgent"] == 201 - BACKGROUND_TOKENS * BACKGROUND_ALONE
    assert "second" not in engine.rows()
    engine.step()
    assert engine.rows()["second"] == 1
    engine.finish()


@pytest.mark.parametrize("depth", [1, 2])
def test_background_work_goes_on_once_the_urgent_has_ended(depth: int) -> None:
    engine = Engine(slots=2)
    engine.core.close()
    engine.core = EngineCore(engine.scheduler, engine.executor, depth=depth)
    engine.add(*(request(f"background-{i}", 1, prompt=[i + 1] * 30) for i in range(4)))
    for index in range(40):
        if index % 4 == 0:
            engine.add(request(f"urgent-{index}", prompt=[index + 1] * 5, max_tokens=12))
        engine.step()
    assert not any(name.startswith("background") for name in engine.ended[:4])
    engine.finish()
    engine.core.close()
    assert len(engine.ended) == 14


def test_a_token_is_not_lost_on_a_sequence_that_finds_no_memory() -> None:
    # One token a step: when its turn comes, the less urgent sequence preempts itself.
    engine = Engine(num_blocks=10, slots=2, budget=1)
    engine.add(request("patient", prompt=[20], max_tokens=30))
    engine.step(2)
    engine.add(request("urgent", -1, prompt=[21], max_tokens=30))
    engine.finish()
    assert engine.scheduler.num_preemptions > 0
    assert engine.ended == ["urgent", "patient"]
