"""Times of records and updates come from the scheduler's clock, so that time can be simulated."""

from loire.base.cache_geometry import one_group
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor


def test_times_are_those_of_the_clock_given() -> None:
    now = 1000.0
    scheduler = Scheduler(
        PagedAllocator(16, one_group(4), prefix_caching=True),
        Continuous(2),
        max_num_batched_tokens=8,
        max_model_len=32,
        background_tokens=8,
        clock=lambda: now,
    )
    core = EngineCore(scheduler, FakeExecutor(16, one_group(4)))
    core.add(EngineRequest("a", (1, 2, 3), SamplingParams(max_tokens=2), 0))
    [first] = core.step()
    now = 2000.0
    [second] = core.step()
    assert [record.time_s for record in core.records] == [1000.0, 2000.0]
    assert first.first_scheduled_s == second.first_scheduled_s == 1000.0
