"""Requests that share a prefix which is just being computed wait for it, and nobody for ever."""

from collections.abc import Sequence

import pytest

from loire.base.cache_geometry import one_group
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor, expected_tokens

WINDOW = 1200
SHARED = tuple(i % 11 for i in range(1024))


def requests(count: int, salt: str = "") -> list[EngineRequest]:
    """W3: 1,024 shared tokens and 16 of their own, 16 tokens out."""
    return [
        EngineRequest(
            request_id=f"{salt}{index}",
            prompt_token_ids=SHARED + tuple(20 + (index + i) % 40 for i in range(16)),
            params=SamplingParams(max_tokens=16),
            seed=index,
            cache_salt=salt,
        )
        for index in range(count)
    ]


def started(
    given: list[EngineRequest], *, budget: int = 2048, num_blocks: int = 600
) -> tuple[EngineCore, FakeExecutor, PagedAllocator]:
    allocator = PagedAllocator(num_blocks, one_group(16), prefix_caching=True)
    executor = FakeExecutor(num_blocks, one_group(16))
    scheduler = Scheduler(
        allocator,
        Continuous(64),
        max_num_batched_tokens=budget,
        max_model_len=WINDOW,
        background_tokens=8,
    )
    core = EngineCore(scheduler, executor)
    for request in given:
        core.add(request)
    return core, executor, allocator


def finished(core: EngineCore, news: Sequence[SequenceUpdate] = ()) -> dict[str, list[int]]:
    """Tokens of all requests, those of the news included."""
    tokens: dict[str, list[int]] = {}
    for _ in range(500):
        for update in news:
            tokens.setdefault(update.request_id, []).extend(update.token_ids)
        if not core.has_work:
            return tokens
        news = core.step()
    pytest.fail("somebody waits for ever")


@pytest.mark.parametrize("budget", [2048, 512])
def test_the_shared_prefix_is_computed_once(budget: int) -> None:
    given = requests(16)
    core, executor, _ = started(given, budget=budget)
    tokens = finished(core)
    assert executor.num_computed_tokens == 1024 + 16 * 16 + 16 * 15
    hits = [record.num_prefix_hit_tokens for record in core.records]
    assert sum(hits) == 15 * 1024
    for request in given:
        assert tokens[request.request_id] == expected_tokens(request, 0, WINDOW)[0]


def test_another_salt_shares_nothing_and_does_not_wait() -> None:
    core, executor, _ = started([*requests(2), *requests(2, salt="other")], budget=4096)
    core.step()
    assert executor.num_computed_tokens == 2 * 1040, "one owner of each salt"
    finished(core)


@pytest.mark.parametrize("when", [1, 2])
def test_when_the_owner_is_given_up_the_earliest_waiter_takes_over(when: int) -> None:
    given = requests(3)
    core, executor, allocator = started(given, budget=512)
    for _ in range(when):
        core.step()
    assert core.abort("0")
    news = core.step()
    # What the first owner had published is found. What is missing the next in line computes; when
    # nothing is, both go on.
    rows = executor.plans[-1].rows
    assert [row.start for row in rows] == ([512] if when == 1 else [1024, 1024])
    tokens = finished(core, news)
    assert tokens["1"] == expected_tokens(given[1], 0, WINDOW)[0]
    assert tokens["2"] == expected_tokens(given[2], 0, WINDOW)[0]
    allocator.check()
    assert allocator.counts.in_use == 0


def test_waiters_let_others_pass() -> None:
    other = EngineRequest("other", (50, 51, 52), SamplingParams(max_tokens=4), seed=9)
    core, _, _ = started([*requests(3), other])
    ended_after = None
    for step in range(100):
        if any(u.request_id == "other" and u.finish_reason for u in core.step()):
            ended_after = step
            break
    assert ended_after is not None
    assert ended_after < 6, "it does not wait for somebody else's prefix"
    finished(core)
