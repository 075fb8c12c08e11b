"""Costs of steps: fitted from records, they tell the steps they come from and others."""

import json
import random
from pathlib import Path

import pytest

from loire.base.cache_geometry import one_group
from loire.base.errors import ConfigError
from loire.base.executor import ComputedStep
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.step import RowResult, StepPlan, StepResult
from loire.engine.core import EngineCore
from loire.fleet.step_costs import StepCosts, Work, fit, recorded_work
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.scheduler import Scheduler

TRUE = StepCosts(5e-3, 2e-4, 3e-7, 4e-8)


class Timed:
    """An executor whose steps take what TRUE says, more or less."""

    def __init__(self, noise: float) -> None:
        self.works: list[Work] = []
        self._noise = noise
        self._rng = random.Random(1)

    def launch(self, plan: StepPlan) -> ComputedStep:
        work = Work.of(plan)
        self.works.append(work)
        seconds = TRUE.step_s(work) * self._rng.uniform(1 - self._noise, 1 + self._noise)
        if self._noise and self._rng.random() < 0.02:
            seconds *= 10  # the machine did something else
        rows = tuple(RowResult(r.seq_id, r.epoch, (7,) if r.samples else ()) for r in plan.rows)
        return ComputedStep(StepResult(plan.step_id, rows, seconds))


def run(executor: Timed, *, shared: bool) -> EngineCore:
    """Requests of many lengths; the last half of them find a shared prefix in the cache."""
    scheduler = Scheduler(
        PagedAllocator(2000, one_group(16), prefix_caching=True),
        Continuous(16),
        max_num_batched_tokens=256,
        max_model_len=4096,
        background_tokens=8,
    )
    core = EngineCore(scheduler, executor)
    rng = random.Random(0)
    for index in range(30):
        prompt = [1] * 64 if shared and index >= 15 else [index + 2] * 64
        prompt += [100 + index] * rng.randint(1, 1500)
        params = SamplingParams(max_tokens=rng.randint(2, 60), ignore_eos=True)
        core.add(EngineRequest(str(index), tuple(prompt), params, 0))
    while core.has_work:
        core.step()
    return core


def test_records_tell_the_work_of_each_step() -> None:
    executor = Timed(noise=0.0)
    core = run(executor, shared=False)
    assert [work for work, _ in recorded_work(core.records)] == executor.works


def test_hits_are_counted_with_the_sequence_that_had_them() -> None:
    executor = Timed(noise=0.0)
    core = run(executor, shared=True)
    told = recorded_work(core.records)
    assert sum(work.context for work, _ in told) == sum(work.context for work in executor.works)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_fit_finds_the_costs(noise: float) -> None:
    core = run(Timed(noise), shared=True)
    found = fit(recorded_work(core.records), overhead_s=1e-3, source="a test")
    assert found.costs.source == "a test"
    assert found.typical_error <= noise + 1e-9
    for work in (Work(1, 50, 50.0), Work(200, 3000, 300_000.0), Work(16, 8000, 8000.0)):
        expected = TRUE.step_s(work) + 1e-3
        assert found.costs.step_s(work) == pytest.approx(expected, rel=1e-6 + noise)


def test_no_cost_is_negative() -> None:
    rng = random.Random(3)
    steps = [(Work(1, c, float(c)), 1e-3 * rng.uniform(0.9, 1.1)) for c in range(1, 100)]
    costs = fit(steps).costs
    assert min(costs.token_s, costs.context_s, costs.pair_s) >= 0 < costs.base_s


def test_many_decode_steps_cost_what_they_cost_one_by_one() -> None:
    singly = sum(TRUE.step_s(Work(3, 300 + 3 * step, 300.0 + 3 * step)) for step in range(40))
    assert TRUE.decode_s(40, 3, 300) == pytest.approx(singly)


def test_few_steps_are_no_ground() -> None:
    with pytest.raises(ConfigError, match="3 recorded steps are too few: 20 are needed"):
        fit([(Work(1, 1, 1.0), 1.0)] * 3)


def test_costs_are_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    TRUE.save(path)
    assert StepCosts.read(path) == TRUE


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"base_s": 1}', None, {"token_s": -1}, {"base_s": 0}, {"pair_s": "x"}],
)
def test_other_files_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    TRUE.save(path)
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    if content is None:
        path.unlink()
    else:
        path.write_text(str(content))
    with pytest.raises(ConfigError, match=r"costs\.json holds no costs of steps"):
        StepCosts.read(path)
