"""Tenants are served alike, whatever they ask for, and nobody waits for ever."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loire.base.cache_geometry import one_group
from loire.base.config import BESIDE_STREAMS
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.engine.core import EngineCore
from loire.memory.paged import PagedAllocator
from loire.scheduling.batching import Continuous
from loire.scheduling.budget import WITH_FIRST_TOKENS
from loire.scheduling.context_cost import EQUAL, MOST, ContextCost
from loire.scheduling.fairness import (
    INPUT_WEIGHT,
    OUTPUT_WEIGHT,
    RecentTenants,
    VirtualCounters,
    first_to_give_way,
    prefill_shares,
    surplus_of,
)
from loire.scheduling.scheduler import Scheduler
from support.fake_execution import FakeExecutor, expected_tokens

WINDOW = 128
BLOCK_SIZE = 4


class Shared:
    """An engine without a model that several tenants use."""

    def __init__(
        self,
        *,
        slots: int = 2,
        num_blocks: int = 256,
        budget: int = 64,
        background: int = 8,
        doubling: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(
            PagedAllocator(num_blocks, one_group(BLOCK_SIZE), prefix_caching=True),
            Continuous(slots),
            max_num_batched_tokens=budget,
            max_model_len=WINDOW,
            background_tokens=background,
            context_cost=ContextCost(doubling),
        )
        self.core = EngineCore(self.scheduler, FakeExecutor(num_blocks, one_group(BLOCK_SIZE)))
        self.requests: dict[str, EngineRequest] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.served: Counter[str] = Counter()
        """Weighted tokens per tenant."""
        self.ran: list[str] = []
        """Requests in the order in which they first ran."""
        self.ended: list[str] = []

    def add(
        self,
        tenant: str,
        *,
        prompt: int = 8,
        max_tokens: int = 4,
        priority: int = 0,
        n: int = 1,
    ) -> str:
        number = len(self.requests)
        request = EngineRequest(
            request_id=f"{tenant}{number}",
            prompt_token_ids=tuple((number * 7 + i) % 12 for i in range(prompt)),
            params=SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=True),
            seed=number,
            cache_salt=str(number),
            priority=priority,
            tenant=tenant,
        )
        self.requests[request.request_id] = request
        self.core.add(request)
        return request.request_id

    def step(self) -> None:
        updates = self.core.step()
        for slot in self.core.records[-1].slots:
            if slot.request_id not in self.ran:
                self.ran.append(slot.request_id)
                request = self.requests[slot.request_id]
                self.served[request.tenant] += INPUT_WEIGHT * len(request.prompt_token_ids)
        for update in updates:
            tenant = self.requests[update.request_id].tenant
            self.served[tenant] += OUTPUT_WEIGHT * len(update.token_ids)
            key = update.request_id, update.choice
            self.tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason is not None:
                self.ended.append(update.request_id)

    def finish(self) -> None:
        for _ in range(5000):
            if not self.core.has_work:
                break
            self.step()
        for request_id, request in self.requests.items():
            for choice in range(request.params.n):
                tokens = self.tokens[request_id, choice]
                assert tokens == expected_tokens(request, choice, WINDOW)[0]
        assert self.scheduler.allocator.counts.in_use == 0
        assert len(self.scheduler.waiting) == 0
        assert list(self.scheduler.waiting.in_turn()) == []

    def num_tokens(self) -> int:
        """Of the latest step."""
        slots = self.core.records[-1].slots
        return sum(slot.num_prefill_tokens + slot.num_decode_tokens for slot in slots)

    def slots_of(self, tenant: str) -> int:
        return sum(sequence.tenant == tenant for sequence in self.scheduler.running)

    def waiting_tenants(self) -> set[str]:
        return {sequence.tenant for sequence in self.scheduler.waiting}


def test_a_flood_does_not_delay_the_others() -> None:
    engine = Shared(slots=2)
    for _ in range(50):
        engine.add("flood")
    for _ in range(20):
        engine.step()
    for _ in range(5):
        light = engine.add("light")
        before = len(engine.ran)
        while light not in engine.ran:
            engine.step()
        # Nobody else goes first.
        assert len(engine.ran) <= before + 2
        while light not in engine.ended:
            engine.step()
    engine.finish()


def test_long_prompts_of_one_tenant_do_not_fill_the_steps() -> None:
    engine = Shared(slots=8, background=1)  # a step of 32 tokens is over soon
    for _ in range(4):
        engine.add("long", prompt=120)
    engine.step()
    assert engine.num_tokens() == 64
    engine.add("light", prompt=12)
    for _ in range(2):
        engine.step()
        # Beside a token of each sequence.
        assert engine.num_tokens() <= 32 + len(engine.scheduler.running)
    assert engine.served["light"] == 12 * INPUT_WEIGHT + 2 * OUTPUT_WEIGHT
    engine.finish()
    # Who is alone for a while has all of a step again.
    for _ in range(5):
        engine.add("long", prompt=120)
    engine.finish()
    engine.add("long", prompt=100)
    engine.step()
    assert engine.num_tokens() == 64


def test_a_tenants_prompts_leave_its_streams_their_turn() -> None:
    engine = Shared(slots=8, budget=400, background=1)
    stream = engine.add("one", prompt=4, max_tokens=40)
    engine.step()
    for _ in range(3):
        engine.add("one", prompt=120, max_tokens=8)
    for _ in range(3):
        engine.step()
        assert engine.num_tokens() <= 32 * BESIDE_STREAMS + len(engine.scheduler.running)
    assert len(engine.tokens[stream, 0]) == 4
    engine.finish()
    for _ in range(3):
        engine.add("one", prompt=120)
    engine.step()
    assert engine.num_tokens() == 360, "nobody waits for a token of theirs"


def test_a_token_behind_a_long_context_counts_as_several() -> None:
    engine = Shared(slots=8, budget=400, background=1, doubling=40)
    engine.add("one", prompt=4, max_tokens=40)
    engine.step()
    engine.add("one", prompt=126, max_tokens=1)
    engine.add("two", prompt=2, max_tokens=40)
    lengths = []
    while engine.requests["one1"].request_id not in engine.ended:
        engine.step()
        lengths.append(engine.num_tokens() - len(engine.scheduler.running))
    # 31 of 32, as "two" has one beside its first; behind 80 tokens a third of it.
    assert max(lengths) <= 32
    assert 32 // 4 - 2 <= min(lengths[1:-1]) <= 32 // 3
    engine.finish()
    engine = Shared(slots=8, budget=100, doubling=1)
    engine.add("one", prompt=120)
    for num_tokens in (100, 20):
        engine.step()
        assert engine.num_tokens() == num_tokens, "as many as fit where nobody waits"


def test_costs_of_contexts() -> None:
    engine = Shared()
    engine.add("one", prompt=8)
    [sequence] = engine.scheduler.waiting
    cost = ContextCost(100)
    for start, each in ((0, 1), (100, 2), (250, 3.5), (10**9, MOST)):
        sequence.num_computed = start
        assert cost.of(sequence, 20) == 20 * each
        assert cost.affordable(sequence, 60) == int(60 / each)
        assert cost.affordable(sequence, 0) == 0
        assert (EQUAL.of(sequence, 20), EQUAL.affordable(sequence, 60)) == (20, 60)


def test_a_newcomer_finds_its_share_though_others_could_use_all() -> None:
    engine = Shared(slots=8, budget=32)
    for _ in range(4):
        engine.add("long", prompt=120)
    engine.step()
    light = engine.add("light", prompt=12)
    engine.step()
    assert light in engine.ran
    assert engine.served["light"] == 12 * INPUT_WEIGHT + OUTPUT_WEIGHT
    engine.finish()


def test_newcomers_of_several_tenants_enter_together() -> None:
    """Though one slot alone is free, and their prompts are more than a step's prefill."""
    engine = Shared(slots=8, budget=400, background=1)
    for tenant in ("wide", "broad"):
        engine.add(tenant, n=16, max_tokens=100)
    short = engine.add("short", max_tokens=9)
    while short not in engine.ended:
        engine.step()
    assert engine.scheduler.batch.free_slots == 1
    names = [engine.add(tenant, prompt=21, max_tokens=2) for tenant in ("short", "b", "c")]
    engine.step()
    assert engine.num_tokens() <= 32 * WITH_FIRST_TOKENS + 8
    assert all(len(engine.tokens[name, 0]) == 1 for name in names)
    # Who has its first token, or a long prompt, has a share of what all have.
    engine.add("b", prompt=60)
    engine.add("later", prompt=120)
    for _ in range(3):
        engine.step()
        assert engine.num_tokens() <= 32 + 8
    engine.finish()


def test_a_newcomer_whose_prompt_is_cached_does_not_wait_for_the_next_step() -> None:
    engine = Shared(slots=8, budget=400, background=1)
    engine.add("long", prompt=120, max_tokens=60)
    engine.add("regular", prompt=100)
    while "regular1" not in engine.ended:
        engine.step()
    engine.add("other", prompt=40)
    request = engine.requests["regular1"]
    again = replace(request, request_id="again", tenant="regular")
    engine.requests["again"] = again
    engine.core.add(again)
    engine.step()
    assert len(engine.tokens["again", 0]) == 1
    engine.finish()


def test_shares_of_a_step() -> None:
    assert prefill_shares({"a": 500}, 60) == {"a": 60}
    assert prefill_shares({"a": 500, "b": 40}, 60) == {"a": 20, "b": 40}
    assert prefill_shares({"a": 500, "b": 400, "c": 5}, 60) == {"a": 10, "b": 45, "c": 5}
    assert prefill_shares({"a": 3, "b": 4}, 60) == {"a": 3, "b": 4}
    assert prefill_shares({"a": 3, "b": 4}, 0) == {"a": 0, "b": 0}


def test_tenants_are_remembered_for_so_many_tokens() -> None:
    tenants = RecentTenants(100)
    tenants.see(["a", "b"])
    assert tenants.are_several
    tenants.compute(60)
    tenants.see(["b"])
    assert tenants.are_several
    tenants.compute(40)
    tenants.see(["b"])
    assert not tenants.are_several


def test_one_call_with_many_choices_shares_its_slots() -> None:
    engine = Shared(slots=8)
    engine.add("greedy", n=32, max_tokens=60)
    for _ in range(6):
        engine.step()
    assert engine.slots_of("greedy") == 8
    light = engine.add("light", max_tokens=20)
    for _ in range(2):
        engine.step()
    assert light in engine.ran
    assert (engine.slots_of("greedy"), engine.slots_of("light")) == (7, 1)
    for _ in range(7):
        engine.add("light", max_tokens=20)
    for _ in range(6):
        engine.step()
    assert (engine.slots_of("greedy"), engine.slots_of("light")) == (4, 4)
    engine.finish()


def test_alone_a_call_has_all_slots_and_loses_none() -> None:
    engine = Shared(slots=8)
    engine.add("greedy", n=32, max_tokens=20)
    engine.add("greedy", n=3)
    engine.finish()
    assert engine.scheduler.num_preemptions == 0


def test_slots_are_not_taken_from_the_more_urgent() -> None:
    engine = Shared(slots=4)
    engine.add("first", n=4, max_tokens=40, priority=-1)
    for _ in range(4):
        engine.step()
    light = engine.add("light")
    for _ in range(4):
        engine.step()
    assert light not in engine.ran
    engine.finish()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    slots=st.integers(1, 6),
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 40), st.sampled_from("abc"), st.integers(1, 12), st.integers(1, 20)
        ),
        min_size=1,
        max_size=15,
    ),
)
def test_slots_are_shared_while_somebody_waits(
    slots: int, arrivals: list[tuple[int, str, int, int]]
) -> None:
    """When slots are shared, who comes next finds no tenant that has two more."""
    engine = Shared(slots=slots, num_blocks=1024)
    scheduler, share = engine.scheduler, engine.scheduler.entrance.share_slots

    def checked() -> None:
        share()
        first = next(scheduler.waiting.in_turn(), None)
        if first is not None and len(scheduler.running) == slots:
            assert surplus_of(scheduler.running, first) is None

    scheduler.entrance.share_slots = checked  # type: ignore[method-assign]
    for step in range(41):
        for due, tenant, n, max_tokens in arrivals:
            if due == step:
                engine.add(tenant, n=n, max_tokens=max_tokens)
        if engine.core.has_work:
            engine.step()
    engine.finish()
    # The squares of what the tenants have, summed, are at most slots**2. Who is put out makes them
    # less by 2 or more; who fills a slot that became free adds at most 2 slots + 1.
    num_fills = slots + sum(n for _, _, n, _ in arrivals)
    assert scheduler.num_preemptions <= num_fills * (slots + 1)


@pytest.mark.parametrize("depth", [1, 2])
def test_shared_slots_cost_no_token(depth: int) -> None:
    engine = Shared(slots=4)
    engine.core = EngineCore(engine.scheduler, engine.core._executor, depth=depth)
    engine.add("greedy", n=8, max_tokens=40)
    try:
        for _ in range(5):
            engine.step()
        for _ in range(3):
            engine.add("light", n=2)
        engine.finish()
    finally:
        engine.core.close()
    assert engine.scheduler.num_preemptions > 0


def test_memory_is_shared_while_somebody_waits() -> None:
    """Without slots to share: the greedy one has fewer than there are."""
    engine = Shared(slots=16, num_blocks=64)
    for _ in range(4):
        engine.add("greedy", prompt=48, max_tokens=60)
    for _ in range(10):
        engine.step()
    assert engine.slots_of("greedy") == 4
    light = engine.add("light", prompt=40, max_tokens=8)
    for _ in range(4):
        engine.step()
    assert light in engine.ran
    assert engine.slots_of("greedy") == 3
    for _ in range(9):
        engine.step()
    assert light in engine.ended, "it was not put out in return"
    engine.finish()


def test_a_tenant_gives_up_no_memory_to_one_that_would_hold_more() -> None:
    engine = Shared(slots=16, num_blocks=64)
    greedy = engine.add("greedy", prompt=90, max_tokens=37)
    for _ in range(4):
        engine.step()
    for _ in range(4):
        engine.add("light", prompt=90, max_tokens=30)
    while greedy not in engine.ended:
        engine.step()
        assert engine.slots_of("greedy") == 1 or greedy in engine.ended
    engine.finish()


@dataclass(frozen=True)
class Held:
    """Something that runs."""

    tenant: str
    num_own_pages: int
    priority: int = 0


def test_who_gives_way_to_one_that_runs() -> None:
    a, b, c = Held("a", 4), Held("b", 3), Held("a", 5)
    assert first_to_give_way([a], 0) is a, "nobody else is there"
    assert first_to_give_way([a, b], 0) is b, "the first never, while there is another"
    assert first_to_give_way([a, b, c], 1) is c, "of the tenant that holds most"
    assert first_to_give_way([a, c, b], 0) is c, "though another came later"
    assert first_to_give_way([a, c, b], 2) is b, "none of those before it, which have their rows"
    assert first_to_give_way([b, Held("b", 3), a, Held("a", 2)], 0).tenant == "a", (
        "the last of equals"
    )
    behind = Held("b", 0, priority=5)
    assert first_to_give_way([a, c, behind], 0) is behind, "the less urgent before all others"


def test_one_tenant_is_served_in_order() -> None:
    engine = Shared(slots=2)
    names = [engine.add("", prompt=4 + number % 5) for number in range(20)]
    engine.finish()
    assert engine.ran == names


def test_what_one_flood_was_charged_puts_nobody_behind_another() -> None:
    engine = Shared(slots=3, budget=20)
    engine.add("wide", prompt=60, n=24, max_tokens=60)
    engine.step()
    engine.add("long", prompt=120, max_tokens=2)
    engine.step()
    assert engine.waiting_tenants() == set(), "no sibling is born yet"
    engine.add("light")
    counters = engine.scheduler.waiting._counters[False]
    assert counters.served("long") > counters.served("wide")
    assert counters.served("light") == counters.served("wide")
    engine.finish()


def test_a_pause_gives_no_credit() -> None:
    engine = Shared(slots=1)
    for _ in range(30):
        engine.add("busy")
    for _ in range(60):
        engine.step()
    assert engine.served["busy"] > 100
    for _ in range(10):
        engine.add("late")
    before, start = engine.served.copy(), len(engine.ran)
    for _ in range(40):
        engine.step()
    assert {"busy", "late"} <= {name[:4] for name in engine.ran[start:]}
    gained = {tenant: engine.served[tenant] - before[tenant] for tenant in ("busy", "late")}
    assert abs(gained["busy"] - gained["late"]) <= 2 * (8 + OUTPUT_WEIGHT * 4)


def test_urgent_requests_of_one_tenant_still_go_first() -> None:
    engine = Shared(slots=1)
    engine.add("first")
    engine.step()
    patient = engine.add("patient")
    urgent = [engine.add("hasty", priority=-1) for _ in range(3)]
    engine.finish()
    assert engine.ran.index(patient) > max(engine.ran.index(name) for name in urgent)


def test_background_work_is_no_argument_against_a_tenant() -> None:
    engine = Shared(slots=1)
    for _ in range(10):
        engine.add("batches", priority=1)
    for _ in range(30):
        engine.step()
    assert engine.served["batches"] > 50
    engine.add("other", max_tokens=1)
    engine.step()
    names = [engine.add("batches"), engine.add("other")]
    engine.finish()
    assert [name for name in engine.ran if name in names] == names


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    slots=st.integers(1, 4),
    sizes=st.dictionaries(
        st.sampled_from("abc"),
        st.tuples(st.integers(1, 24), st.integers(1, 12)),
        min_size=2,
    ),
)
def test_tenants_that_always_ask_get_the_same(
    slots: int, sizes: dict[str, tuple[int, int]]
) -> None:
    """The paper's bound: 2 max(w_p L, w_q M), M the output tokens that a batch can hold."""
    engine = Shared(slots=slots)
    longest_prompt = max(prompt for prompt, _ in sizes.values())
    most_output = slots * max(max_tokens for _, max_tokens in sizes.values())
    bound = 2 * max(INPUT_WEIGHT * longest_prompt, OUTPUT_WEIGHT * most_output)
    for tenant, (prompt, max_tokens) in sizes.items():
        for _ in range(30):
            engine.add(tenant, prompt=prompt, max_tokens=max_tokens)
    for _ in range(150):
        engine.step()
        if engine.waiting_tenants() != set(sizes):
            break
        served = [engine.served[tenant] for tenant in sizes]
        assert max(served) - min(served) <= bound
    assert min(engine.served[tenant] for tenant in sizes) > 0
    engine.finish()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_blocks=st.integers(10, 40),
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 30), st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 16)
        ),
        max_size=40,
    ),
)
def test_nobody_starves_when_memory_is_short(
    num_blocks: int, arrivals: list[tuple[int, str, int, int]]
) -> None:
    engine = Shared(slots=4, num_blocks=num_blocks)
    for step in range(31):
        for due, tenant, prompt, max_tokens in arrivals:
            if due == step:
                engine.add(tenant, prompt=prompt, max_tokens=max_tokens)
        if engine.core.has_work:
            engine.step()
    engine.finish()


def test_counters() -> None:
    counters = VirtualCounters()
    counters.comes("a", [])
    counters.charge("a", num_input=10, num_output=5)
    assert counters.served("a") == 20
    counters.comes("b", ["a"])
    assert counters.served("b") == 20
    counters.charge("b", num_input=3)
    counters.comes("c", ["a", "b"])
    assert counters.served("c") == 20
    counters.charge("a", num_input=100)
    counters.leaves("b")
    counters.leaves("a")
    counters.comes("d", [])
    assert counters.served("d") == counters.served("a") == 120
    counters.comes("a", ["d"])
    assert counters.served("a") == 120


@pytest.mark.parametrize("depth", [1, 2])
def test_a_tenant_that_is_preempted_keeps_its_place(depth: int) -> None:
    engine = Shared(slots=4, num_blocks=12)
    engine.core = EngineCore(engine.scheduler, engine.core._executor, depth=depth)
    for _ in range(8):
        engine.add("a", prompt=12, max_tokens=20)
    light = engine.add("b", prompt=12, max_tokens=20)
    try:
        engine.finish()
    finally:
        engine.core.close()
    assert engine.scheduler.num_preemptions > 0
    assert engine.ran.index(light) <= 2
    assert engine.ended.index(light) <= 4
