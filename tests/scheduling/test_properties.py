"""Whatever arrives, ends or is aborted: each request gets the tokens that it would get alone."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from loire.base.cache_geometry import CacheGeometry, CacheGroup, one_group
from loire.base.config import BACKGROUND_ALONE
from loire.base.errors import EngineError
from loire.base.messages import EngineRequest, SequenceUpdate
from loire.base.sampling import SamplingParams
from loire.base.step import StepPlan
from loire.engine.core import EngineCore
from loire.memory.allocator import KVAllocator
from loire.memory.paged import PagedAllocator
from loire.memory.reserved import ReservedAllocator
from loire.scheduling.batching import BatchingPolicy, Continuous, Sequential, Static
from loire.scheduling.context_cost import ContextCost
from loire.scheduling.fairness import surplus_of
from loire.scheduling.scheduler import Scheduler
from loire.scheduling.sequence import Sequence, Status
from support.fake_execution import (
    POISON,
    VOCAB,
    FakeExecutor,
    expected_tokens,
    extend,
    next_token,
)

MAX_STEPS = 4000


@dataclass(frozen=True)
class Arrival:
    """A request, when it comes, and when (if ever) it or one choice of it is given up."""

    request: EngineRequest
    step: int
    abort_after: int | None = None
    aborted_choice: int | None = None


@dataclass
class Received:
    """What a client got of one choice."""

    tokens: list[int] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    prompt_logprobs: list[int] = field(default_factory=list)


@dataclass
class Case:
    """An engine over the fake executor, and the load."""

    allocator: KVAllocator
    policy: BatchingPolicy
    budget: int
    background_tokens: int
    max_model_len: int
    depth: int
    arrivals: list[Arrival]
    drafts: int = 0
    """Tokens that are drafted for each sequence and step, rightly or not."""
    failures: dict[int, BaseException] = field(default_factory=dict)
    """What the executor raises, by the number of the step that it is given."""
    doubling: int | None = None
    """Tokens of context behind which one of a prompt costs twice as much."""
    bug: int | None = None
    """A token that makes every step fail which computes it."""


def shared_prefix(group: int, length: int) -> list[int]:
    """Tokens that the requests of a group begin with."""
    return [(group * 31 + index * 7) % 12 for index in range(length)]


@st.composite
def arrivals(
    draw: st.DrawFn, max_model_len: int, priorities: st.SearchStrategy[int]
) -> list[Arrival]:
    result = []
    for index in range(draw(st.integers(1, 9))):
        prefix = shared_prefix(draw(st.integers(0, 1)), draw(st.integers(0, 24)))
        tail = draw(st.lists(st.integers(14, VOCAB - 1), min_size=1, max_size=12))
        poison = [POISON] if draw(st.integers(0, 11)) == 0 else []
        prompt = (prefix + poison + tail)[: max_model_len - 1]
        n = draw(st.sampled_from([1, 1, 1, 2, 4]))
        params = SamplingParams(
            n=n,
            max_tokens=draw(st.one_of(st.none(), st.integers(1, 20))),
            min_tokens=0,
            prompt_logprobs=draw(st.sampled_from([None, None, None, 0])),
        )
        request = EngineRequest(
            request_id=f"r{index}",
            prompt_token_ids=tuple(prompt),
            params=params,
            seed=draw(st.integers(0, 3)),
            stop_token_ids=tuple(draw(st.sampled_from([(), (5,), (1, 2, 3)]))),
            cache_salt=draw(st.sampled_from(["", "", "other"])),
            priority=draw(priorities),
            tenant=draw(st.sampled_from(["", "", "other"])),
            cache_marks=tuple(draw(st.lists(st.integers(0, len(prompt)), max_size=2))),
        )
        aborts = draw(st.sampled_from(["no", "no", "no", "request", "choice"]))
        result.append(
            Arrival(
                request,
                step=draw(st.integers(0, 12)),
                abort_after=draw(st.integers(0, 15)) if aborts != "no" else None,
                aborted_choice=draw(st.integers(0, n - 1)) if aborts == "choice" else None,
            )
        )
    return result


@st.composite
def geometries(draw: st.DrawFn, block_size: int) -> CacheGeometry:
    """One group that sees all; or windows and states beside it, or alone."""
    kinds = draw(
        st.sampled_from(["f", "f", "w", "fw", "fw", "fwW", "s", "fs", "fs", "fws", "fws", "ws"])
    )
    groups = []
    for layer, kind in enumerate(kinds):
        size = block_size * draw(st.sampled_from([1, 1, 2, 3])) if len(kinds) > 1 else block_size
        window = draw(st.integers(2, 20))
        if kind == "f":
            groups.append(CacheGroup("full", (layer,), size, 1))
        elif kind == "s":
            pages = draw(st.integers(1, 2))
            groups.append(CacheGroup("state", (layer,), state_bytes=1, pages_per_state=pages))
        else:
            groups.append(CacheGroup("window", (layer,), size, 1, window))
    return CacheGeometry(tuple(groups), block_size, block_size)


@st.composite
def paged_cases(draw: st.DrawFn, most_drafts: int = 0) -> Case:
    block_size = draw(st.sampled_from([1, 4, 8]))
    geometry = draw(geometries(block_size))
    max_model_len = draw(st.integers(24, 48))
    budget, depth = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2]))
    drafts = draw(st.integers(0, most_drafts))
    most_ahead = budget * depth
    least = geometry.pages_for(max_model_len, most_ahead)
    if drafts:
        least += sum(group.pages_per_state for group in geometry.groups)
    num_blocks = draw(st.integers(least, 4 * least))
    return Case(
        PagedAllocator(
            num_blocks, geometry, prefix_caching=draw(st.booleans()), most_ahead=most_ahead
        ),
        Continuous(draw(st.integers(1, 8))),
        budget=budget,
        background_tokens=draw(st.integers(1, 5)),
        max_model_len=max_model_len,
        depth=depth,
        drafts=drafts,
        doubling=draw(st.sampled_from([None, 1, 10])),
        arrivals=draw(arrivals(max_model_len, st.sampled_from([0, 0, 0, -1, 1, 2]))),
    )


@st.composite
def historical_cases(draw: st.DrawFn, priorities: st.SearchStrategy[int]) -> Case:
    block_size = draw(st.sampled_from([4, 8]))
    max_model_len = draw(st.integers(24, 48))
    num_blocks = draw(st.integers(1, 5)) * -(-max_model_len // block_size)
    size = draw(st.integers(1, 6))
    return Case(
        ReservedAllocator(
            num_blocks,
            one_group(block_size),
            reserve=draw(st.sampled_from(["max-tokens", "window"])),
            max_model_len=max_model_len,
        ),
        draw(st.sampled_from([Sequential(), Static(size), Continuous(size)])),
        budget=draw(st.integers(1, 40)),
        max_model_len=max_model_len,
        background_tokens=draw(st.integers(1, 5)),
        depth=draw(st.sampled_from([1, 2])),
        arrivals=draw(arrivals(max_model_len, priorities)),
    )


class Run:
    """Plays a case and checks each step."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.executor = FakeExecutor(case.allocator.num_blocks, case.allocator.geometry, self._fail)
        self.scheduler = Scheduler(
            case.allocator,
            case.policy,
            max_num_batched_tokens=case.budget,
            max_model_len=case.max_model_len,
            background_tokens=case.background_tokens,
            context_cost=ContextCost(case.doubling),
        )
        self.scheduler.drafter = self._draft if case.drafts else None
        self.received: dict[tuple[str, int], Received] = {}
        self.aborted: set[tuple[str, int]] = set()
        self.num_raised = 0
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._schedule_checked  # type: ignore[method-assign]
        self._preempt = self.scheduler.batch.preempt
        self.scheduler.batch.preempt = self._preempt_checked  # type: ignore[method-assign]

    def _fail(self, plan: StepPlan, after: bool) -> None:
        number = len(self.executor.plans)
        error = self.case.failures.get(number)
        if error is not None and after == (number % 2 == 0):
            raise error
        if after and self.case.bug in self.executor.computed:
            raise ZeroDivisionError("a bug")

    def _draft(self, token_ids: list[int], most: int) -> list[int]:
        """What the first choice of seed 0 would get: right for some, wrong for others."""
        history = b""
        for token in token_ids:
            history = extend(history, token)
        drafted: list[int] = []
        for _ in range(min(most, self.case.drafts)):
            drafted.append(next_token(history, 0, 0) if len(drafted) % 3 < 2 else 7)
            history = extend(history, drafted[-1])
        return drafted

    def _breaks(self, request: EngineRequest) -> bool:
        """Whether one of its choices meets the bug: all of them fail then."""
        expected = partial(expected_tokens, request, bug=self.case.bug)
        return any(
            expected(choice, self.case.max_model_len)[1] == "error"
            for choice in range(request.params.n)
        )

    def _preempt_checked(self, victim: Sequence) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        first = min(running, key=lambda s: s.order)
        displaced = any(s.priority < victim.priority for s in waiting)
        assert victim is not first or displaced, "the first running sequence was preempted"
        gives_slot = any(surplus_of(running, s) is victim for s in waiting)
        last = max(running, key=lambda s: s.order)
        if any(s.priority == victim.priority for s in waiting):
            # Who waits takes memory from its equals, while less urgent ones run, too.
            last = max((s for s in running if s.priority == victim.priority), key=lambda s: s.order)
        equals = [s for s in running if s.priority == last.priority]
        pages = Counter[str]()
        for sequence in equals:
            pages[sequence.tenant] += sequence.num_own_pages
        gives_memory = (
            victim is [None, *(s for s in equals if s.tenant == victim.tenant)][-1]
            and pages[victim.tenant] >= pages[last.tenant]
        )
        assert gives_slot or victim is last or gives_memory or displaced
        self._preempt(victim)

    def _schedule_checked(self) -> StepPlan | None:
        plan = self._schedule()
        background, others = 0, 0
        for row in plan.rows if plan else ():
            sequence = self.scheduler._sequences[row.seq_id]
            background += len(row.token_ids) if sequence.priority > 0 else 0
            others += sequence.priority <= 0
        limit = self.case.background_tokens * (1 if others else BACKGROUND_ALONE)
        assert background <= limit, f"{background} tokens of background work beside {others} rows"
        return plan

    def play(self) -> None:
        core = EngineCore(self.scheduler, self.executor, depth=self.case.depth)
        step = 0
        while core.has_work or any(a.step >= step for a in self.case.arrivals):
            for arrival in self.case.arrivals:
                if arrival.step == step:
                    core.add(arrival.request)
                if arrival.abort_after is not None and arrival.step + arrival.abort_after == step:
                    self._abort(core, arrival)
            try:
                updates = core.step()
            except (KeyboardInterrupt, MemoryError):
                updates = []
                self.num_raised += 1
            for update in updates:
                self._receive(update)
            self._check_step()
            self._check_block_owners(core)
            step += 1
            assert step < MAX_STEPS, "somebody starves"
        core.close()

    def _abort(self, core: EngineCore, arrival: Arrival) -> None:
        request_id, n = arrival.request.request_id, arrival.request.params.n
        if arrival.aborted_choice is None:
            if core.abort(request_id):
                self.aborted |= {(request_id, choice) for choice in range(n)}
        elif core.abort_choice(request_id, arrival.aborted_choice):
            self.aborted.add((request_id, arrival.aborted_choice))

    def _receive(self, update: SequenceUpdate) -> None:
        key = (update.request_id, update.choice)
        got = self.received.setdefault(key, Received())
        assert not got.finishes, "news after the end"
        assert key not in self.aborted, "news after an abort"
        got.tokens += update.token_ids
        got.prompt_logprobs += [entry.token_ids[0] for entry in update.prompt_logprobs]
        if update.finish_reason is not None:
            got.finishes.append(update.finish_reason)

    def _check_step(self) -> None:
        self.case.allocator.check()
        if self.executor.plans:
            plan = self.executor.plans[-1]
            assert plan.num_tokens <= self.case.budget
            ids = [row.seq_id for row in plan.rows]
            assert len(set(ids)) == len(ids)
        members = len(self.scheduler.running) + len(self.scheduler.policy.held)
        assert members <= getattr(self.case.policy, "max_num_seqs", 1)
        assert all(s.status is Status.RUNNING for s in self.scheduler.running)

    def _check_block_owners(self, core: EngineCore) -> None:
        """A block in use was taken by one sequence at most, however many share it."""
        present = {s.seq_id for s in (*self.scheduler.running, *self.scheduler.policy.held)}
        if core.records and len(self.executor.plans) not in self.case.failures:
            owned = [s.num_blocks for s in core.records[-1].slots if s.seq_id in present]
            assert all(count >= 0 for count in owned)
            assert sum(owned) <= core.records[-1].blocks_in_use

    def check_end(self, *, blamed: bool = False) -> None:
        """blamed: whether requests may have failed by what the executor raised at random."""
        for arrival in self.case.arrivals:
            request = arrival.request
            for choice in range(request.params.n):
                key = (request.request_id, choice)
                got = self.received.get(key, Received())
                tokens, finish = expected_tokens(
                    request, choice, self.case.max_model_len, self.case.bug
                )
                if got.finishes == ["error"] and (blamed or self._breaks(request)):
                    assert got.tokens == tokens[: len(got.tokens)]
                    continue
                if key in self.aborted:
                    assert got.tokens == tokens[: len(got.tokens)]
                    continue
                assert (got.tokens, got.finishes) == (tokens, [finish]), key
                wants = request.params.prompt_logprobs is not None and choice == 0
                if wants and finish != "error":
                    assert got.prompt_logprobs == list(request.prompt_token_ids[1:])
        # One more look at the batch lets a static one go.
        assert self.scheduler.schedule() is None
        self.case.allocator.check()
        assert self.case.allocator.counts.in_use == 0
        assert not self.scheduler.waiting


COMMON = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@COMMON
@given(paged_cases())
def test_paged(case: Case) -> None:
    run = Run(case)
    run.play()
    run.check_end()
    event(f"preempted: {run.scheduler.num_preemptions > 0}")


@COMMON
@given(paged_cases(most_drafts=4))
def test_drafted(case: Case) -> None:
    run = Run(case)
    run.play()
    run.check_end()
    steps = max(len(run.executor.plans), 1)
    event(f"tokens per step: {sum(len(r.tokens) for r in run.received.values()) // steps}")


FAILURES = st.dictionaries(
    st.integers(1, 40),
    st.sampled_from([KeyboardInterrupt(), MemoryError(), EngineError("lost"), ValueError("bad")]),
    max_size=6,
)


@COMMON
@given(
    st.one_of(paged_cases(most_drafts=2), historical_cases(st.just(0))),
    FAILURES,
)
def test_steps_that_raise(case: Case, failures: dict[int, BaseException]) -> None:
    """Whatever they raise and whenever: nobody loses anything but time, or who is to blame."""
    case.failures = failures
    run = Run(case)
    run.play()
    blamed = [key for key, got in run.received.items() if got.finishes == ["error"]]
    event(f"raised: {run.num_raised}, blamed: {len(blamed)}")
    run.check_end(blamed=True)


@COMMON
@given(st.one_of(paged_cases(), historical_cases(st.just(0))), st.integers(14, 17))
def test_a_request_that_breaks_its_steps(case: Case, bug: int) -> None:
    """It fails, wherever in it the harm is, and all others get their tokens."""
    case.bug = bug
    run = Run(case)
    try:
        run.play()
    except EngineError:
        assert len({name for name, got in run.received.items() if got.finishes == ["error"]}) >= 8
        return
    run.check_end()
    event(f"errors: {sum(got.finishes == ['error'] for got in run.received.values())}")


@COMMON
@given(historical_cases(st.just(0)))
def test_historical_policies(case: Case) -> None:
    run = Run(case)
    run.play()
    run.check_end()
    tenants = {arrival.request.tenant for arrival in case.arrivals}
    assert run.scheduler.num_preemptions == 0 or len(tenants) > 1


@COMMON
@given(historical_cases(st.sampled_from([0, 0, -1, 1, 2])))
def test_historical_policies_with_priorities(case: Case) -> None:
    run = Run(case)
    run.play()
    run.check_end()
    event(f"preempted: {run.scheduler.num_preemptions > 0}")


def test_fork_of_a_block_that_was_copied_in_the_same_step() -> None:
    """The parent copies the block it shares with an urgent sibling; the next one forks the copy."""
    background = EngineRequest("r0", (13, 14), SamplingParams(max_tokens=None), 0, priority=1)
    prompt = (*shared_prefix(0, 17), 14)
    siblings = EngineRequest("r1", prompt, SamplingParams(n=4, max_tokens=None), 0)
    case = Case(
        PagedAllocator(6, one_group(8), prefix_caching=False),
        Continuous(3),
        budget=3,
        background_tokens=1,
        max_model_len=24,
        depth=2,
        arrivals=[Arrival(background, 0), Arrival(siblings, 0)],
    )
    run = Run(case)
    run.play()
    run.check_end()


def test_what_siblings_would_start_from_yields_to_one_that_runs() -> None:
    """One sequence that fits alone goes on, though the state for its sibling took a page of it."""
    state = CacheGroup(kind="state", layers=(1,), state_bytes=1, pages_per_state=1)
    group = CacheGroup(kind="full", layers=(0,), block_size=4, bytes_per_token=1)
    geometry = CacheGeometry(groups=(group, state), page_bytes=4, block_size=4)
    case = Case(
        PagedAllocator(8, geometry, prefix_caching=False),
        Continuous(1),
        budget=1,
        background_tokens=1,
        max_model_len=27,
        depth=1,
        arrivals=[
            Arrival(EngineRequest("r0", (14, 14), SamplingParams(n=2, max_tokens=None), 0), 0)
        ],
    )
    run = Run(case)
    run.play()
    run.check_end()
