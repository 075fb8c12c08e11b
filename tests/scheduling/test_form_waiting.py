"""A sequence whose constraint is being compiled waits, holding nothing, and delays nobody."""

import pytest

from loire.base.cache_geometry import one_group
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from loire.engine.core import EngineCore
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor

WINDOW = 64
FORM = StructuredOutputs(choice=("a", "b"))


def request(name: str, form: StructuredOutputs | None, priority: int = 0) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(range(8)),
        params=SamplingParams(max_tokens=4, structured_outputs=form),
        seed=len(name),
        priority=priority,
    )


class Forms:
    """Constraints that are ready when the test says so."""

    def __init__(self) -> None:
        self.compiled: set[StructuredOutputs] = set()
        self.asked: list[StructuredOutputs] = []

    def ready(self, form: StructuredOutputs) -> bool:
        self.asked.append(form)
        return form in self.compiled


def engine(forms: Forms, slots: int = 2) -> EngineCore:
    scheduler = Scheduler(
        PagedAllocator(32, one_group(4), prefix_caching=True),
        Continuous(slots),
        max_num_batched_tokens=64,
        max_model_len=WINDOW,
        background_tokens=8,
    )
    return EngineCore(scheduler, FakeExecutor(32, one_group(4)), form_ready=forms.ready)


def ended(core: EngineCore, steps: int) -> list[str]:
    """Who ended in so many steps."""
    return [
        update.request_id
        for _ in range(steps)
        for update in core.step()
        if update.finish_reason is not None
    ]


@pytest.mark.parametrize("priority", [0, -1])
def test_others_go_on_while_it_waits(priority: int) -> None:
    forms = Forms()
    core = engine(forms)
    core.add(request("constrained", FORM, priority))
    for number in range(6):
        core.add(request(f"free {number}", None))
    assert ended(core, 30) == [f"free {number}" for number in range(6)]
    assert core.scheduler.entrance.waits_for_forms
    allocator = core.scheduler.allocator
    assert isinstance(allocator, PagedAllocator)
    assert allocator.pool.counts.in_use == 0
    forms.compiled.add(FORM)
    assert ended(core, 10) == ["constrained"]
    assert not core.has_work


def test_alone_it_is_waited_for_and_can_be_aborted() -> None:
    forms = Forms()
    core = engine(forms)
    core.add(request("constrained", FORM))
    assert ended(core, 5) == []
    assert core.has_work
    assert len(forms.asked) >= 5
    core.abort("constrained")
    assert not core.has_work


def test_one_that_is_ready_enters_at_once() -> None:
    forms = Forms()
    forms.compiled.add(FORM)
    core = engine(forms)
    core.add(request("constrained", FORM))
    assert ended(core, 4) == ["constrained"]
