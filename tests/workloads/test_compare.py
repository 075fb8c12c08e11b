"""Loads through the policies: what is counted, against cases small enough to count by hand."""

from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig, Policy
from loire.base.errors import ConfigError
from loire.base.executor import PendingStep, StepExecutor
from loire.base.step import StepPlan
from loire.engine.core import EngineCore
from loire.engine.start import Engine
from loire.scheduling.presets import build_scheduler
from loire.workloads.compare import CONTENDERS, compare
from loire.workloads.comparison_page import comparison_page
from loire.workloads.drive import STOP_TOKEN, play
from loire.workloads.loads import Load, LoadRequest
from loire.workloads.metrics import Objective, Percentiles, report
from loire.workloads.seven_requests import ConstantExecutor

OBJECTIVE = Objective(ttft_s=60.0, tpot_s=60.0)
WINDOW, BLOCK = 48, 4


@dataclass
class Watching:
    """Keeps what the policies let through to the executor."""

    inner: StepExecutor = field(default_factory=ConstantExecutor)
    max_tokens: set[int | None] = field(default_factory=set)

    def launch(self, plan: StepPlan) -> PendingStep:
        self.max_tokens |= {new.params.max_tokens for new in plan.new_sequences}
        return self.inner.launch(plan)


def config(num_blocks: int = 4 * WINDOW // BLOCK) -> EngineConfig:
    return EngineConfig(
        model="none",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        device="none",
        max_model_len=WINDOW,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        geometry=one_group(BLOCK, 10),
        num_blocks=num_blocks,
        enable_prefix_caching=False,
        policy="paged",
        reserve="window",
        pipeline_depth=1,
        seed=0,
    )


def engine(num_blocks: int = 4 * WINDOW // BLOCK) -> Engine:
    """An engine without a model."""
    settled = config(num_blocks)
    return Engine(
        config=settled,
        checkpoint=None,  # type: ignore[arg-type]
        adapters=None,  # type: ignore[arg-type]
        core=EngineCore(build_scheduler(settled), ConstantExecutor()),
        executor=Watching(),
        constraints=None,  # type: ignore[arg-type]
        weight_bytes=1000,
        weights_held="",
        step_bytes=lambda tokens: 1000,
        head_bytes=0,
        available_bytes=0,
        kernels="none",
        load_s=0.0,
    )


def load(lengths: list[tuple[int, int]], shared: int = 0) -> Load:
    """(prompt, output) lengths, all at once; prompts differ after the shared tokens."""
    return Load(
        "test",
        tuple(
            LoadRequest((*range(shared), *(100 * (i + 1) + t for t in range(p - shared))), o)
            for i, (p, o) in enumerate(lengths)
        ),
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 32)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 5))
def test_every_policy_gives_every_request_its_drawn_length(
    lengths: list[tuple[int, int]], windows: int
) -> None:
    cap = 32
    result = compare(
        engine(windows * WINDOW // BLOCK),
        load(lengths),
        tuple(CONTENDERS),
        cap=cap,
        reserve="window",
        objective=OBJECTIVE,
    )
    output = sum(o for _, o in lengths)
    for one in result.reports:
        assert round(one.output_tokens_per_s * one.wall_s) == output
        parts = one.kv_live_share + one.kv_reserved_share
        parts += one.kv_idle_share + one.kv_fragmented_share
        # Records are made when a step's results are in: one that ends everything leaves nothing.
        assert parts in (pytest.approx(1.0), 0.0)
        assert one.goodput == 1.0
        assert one.largest_batch <= 16
        if one.name in ("sequential", "static", "orca"):
            assert one.preemptions == 0
            assert one.prefix_hit_rate == 0.0
    by_name = {one.name: one for one in result.reports}
    assert by_name["sequential"].steps >= by_name["static"].steps >= by_name["paged"].steps
    assert by_name["sequential"].largest_batch == 1
    # What is computed does not depend on the policy, unless something is computed again.
    assert by_name["sequential"].computed_tokens == by_name["static"].computed_tokens


def test_counts_by_hand() -> None:
    """Two requests of 4 + 3 and 4 + 1 tokens in blocks of 4, by hand."""
    result = compare(
        engine(), load([(4, 3), (4, 1)]), ["static"], cap=8, reserve="window", objective=OBJECTIVE
    )
    [one] = result.reports
    # Step 1: both prompts; 2 and 3: one more token of the first.
    assert one.steps == 3
    assert one.computed_tokens == 4 + 4 + 1 + 1
    assert one.weight_bytes_read == 3 * 1000
    assert one.kv_bytes_read == (4 + 4 + 5 + 6) * 10
    assert one.mean_batch == pytest.approx((2 + 1 + 1) / 3)
    assert one.kv_idle_share > 0, "the second waits for the first to end"


def test_policies_see_the_cap_and_not_the_drawn_length() -> None:
    made = engine()
    compare(made, load([(4, 3), (5, 6)]), ["orca"], cap=20, reserve="window", objective=OBJECTIVE)
    assert isinstance(made.executor, Watching)
    assert made.executor.max_tokens == {20, 2}  # and the request that warms up


def test_reserved_memory_bounds_the_batch_and_paging_does_not() -> None:
    lengths = [(4, 4)] * 8
    result = compare(
        engine(2 * WINDOW // BLOCK),
        load(lengths),
        ["static", "orca", "paged"],
        cap=32,
        reserve="window",
        objective=OBJECTIVE,
    )
    static, orca, paged = result.reports
    assert (static.largest_batch, orca.largest_batch, paged.largest_batch) == (2, 2, 8)
    assert paged.kv_live_share > 0.5 > orca.kv_live_share
    assert result.speedup("paged", "sequential") is None


def test_a_shared_prefix_is_found_by_the_prefix_cache_alone() -> None:
    result = compare(
        engine(),
        load([(16, 2)] * 4, shared=12),
        ["paged", "paged+prefix"],
        cap=8,
        reserve="window",
        objective=OBJECTIVE,
    )
    plain, cached = result.reports
    assert plain.prefix_hit_rate == 0.0
    assert cached.prefix_hit_rate == pytest.approx(3 * 12 / (4 * 16))
    assert cached.computed_tokens == plain.computed_tokens - 3 * 12


def test_arrival_times_are_kept() -> None:
    played = play(
        partial(engine().core_for, "paged", prefix_caching=False, reserve="window"),
        Load("late", (LoadRequest((1, 2), 2, 0.0), LoadRequest((3, 4), 2, 0.05))),
        8,
    )
    first, second = played.requests
    assert first.end_s is not None
    assert second.scheduled_s is not None
    assert first.end_s < 0.05 <= second.scheduled_s
    assert len(played.records) == 4


@pytest.mark.parametrize(
    ("names", "lengths", "cap", "message"),
    [
        (["page"], [(4, 4)], 8, "there is no policy"),
        ([], [(4, 4)], 8, "there is no policy"),
        (["paged"], [], 8, "no requests"),
        (["paged"], [(20, 4)], 32, "prompts of up to 20 tokens and a cap of 32 .* window of 48"),
        (["paged"], [(4, 9)], 8, "generates 9 tokens, more than the cap of 8"),
    ],
)
def test_refusals(names: list[str], lengths: list[tuple[int, int]], cap: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(engine(), load(lengths), names, cap=cap, reserve="window", objective=OBJECTIVE)


def test_percentiles_by_nearest_rank() -> None:
    hundred = [float(i) for i in range(1, 101)]
    assert Percentiles.of(hundred) == Percentiles(50.0, 95.0, 99.0, 50.5)
    assert Percentiles.of([3.0]) == Percentiles(3.0, 3.0, 3.0, 3.0)
    assert Percentiles.of([]) == Percentiles(0.0, 0.0, 0.0, 0.0)


def test_goodput_needs_both_objectives() -> None:
    playback = play(
        partial(engine().core_for, "paged", prefix_caching=False, reserve="window"),
        load([(4, 4), (4, 4)]),
        8,
    )
    numbers = {"block_size": 4, "num_blocks": 48, "step_bytes": int, "kv_bytes_per_token": 1}
    assert report("x", playback, Objective(9.0, 9.0), **numbers).goodput == 1.0
    assert report("x", playback, Objective(0.0, 9.0), **numbers).goodput == 0.0
    assert report("x", playback, Objective(9.0, 0.0), **numbers).goodput == 0.0


def test_the_page_is_self_contained() -> None:
    result = compare(
        engine(),
        load([(4, 3), (4, 6), (2, 2)]),
        tuple(CONTENDERS),
        cap=8,
        reserve="window",
        objective=OBJECTIVE,
    )
    html = comparison_page(result, "<load> & model")
    assert "&lt;load&gt; &amp; model" in html
    assert "<script" not in html
    assert "http" not in html.replace("http://www.w3.org", "")
    for name in CONTENDERS:
        assert html.count(f">{name}<") >= 4


def test_no_vocabulary_holds_the_stop_token() -> None:
    assert STOP_TOKEN > 10**9


def test_unused_policy_names_are_all_presets() -> None:
    policies: set[Policy] = {contender.policy for contender in CONTENDERS.values()}
    assert policies == {"sequential", "static", "orca", "paged"}
