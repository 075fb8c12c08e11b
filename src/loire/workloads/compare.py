"""One load through several policies, one after another, on one loaded model and one KV pool."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from loire.base.config import Policy, Reserve
from loire.base.errors import ConfigError
from loire.base.step import StepRecord
from loire.engine.start import Engine
from loire.workloads.drive import play
from loire.workloads.loads import Load
from loire.workloads.metrics import Objective, PolicyReport, report


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with or without the prefix cache."""

    policy: Policy
    prefix_caching: bool = False


CONTENDERS: dict[str, Contender] = {
    "sequential": Contender("sequential"),
    "static": Contender("static"),
    "orca": Contender("orca"),
    "paged": Contender("paged"),
    "paged+prefix": Contender("paged", prefix_caching=True),
}
"""By the names of reports, in the order of their history."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What each policy made of a load."""

    load: Load
    cap: int
    objective: Objective
    reports: tuple[PolicyReport, ...]
    records: dict[str, list[StepRecord]]
    """The steps of each policy, for pictures."""

    def speedup(self, name: str, over: str) -> float | None:
        """Output tokens per second of one policy over those of another, if both ran."""
        rates = {report.name: report.output_tokens_per_s for report in self.reports}
        return rates[name] / rates[over] if over in rates else None


def compare(
    engine: Engine,
    load: Load,
    names: Sequence[str],
    *,
    cap: int,
    reserve: Reserve,
    objective: Objective,
    progress: Callable[[str, float], None] = lambda name, share: None,
    finished: Callable[[PolicyReport], None] = lambda result: None,
) -> Comparison:
    """Play the load under each of the named policies.

    cap: max_tokens that every request declares. progress: told the policy and the share of
    requests that have ended. Raises ConfigError if a request cannot fit.
    """
    _check(engine, load, names, cap)
    config = engine.config
    reports, records = [], {}
    _warm_up(engine, load)
    for name in names:
        contender = CONTENDERS[name]
        make_core = partial(
            engine.core_for,
            contender.policy,
            prefix_caching=contender.prefix_caching,
            reserve=reserve,
        )
        playback = play(make_core, load, cap, progress=partial(progress, name))
        result = report(
            name,
            playback,
            objective,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            step_bytes=engine.step_bytes,
            kv_bytes_per_token=config.kv_bytes_per_token,
        )
        reports.append(result)
        records[name] = playback.records
        finished(result)
    return Comparison(load, cap, objective, tuple(reports), records)


def _check(engine: Engine, load: Load, names: Sequence[str], cap: int) -> None:
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or not names:
        raise ConfigError(f"there is no policy {unknown}; there are {', '.join(CONTENDERS)}")
    if not load.requests:
        raise ConfigError("the load has no requests")
    window = engine.config.max_model_len
    longest = max(len(request.prompt_token_ids) for request in load.requests)
    if longest + cap > window:
        raise ConfigError(
            f"prompts of up to {longest} tokens and a cap of {cap} do not fit into the window of "
            f"{window}"
        )
    over = max(request.num_output for request in load.requests)
    if over > cap:
        raise ConfigError(f"a request generates {over} tokens, more than the cap of {cap}")


def _warm_up(engine: Engine, load: Load) -> None:
    """One short request, so that nobody pays for the first touch of the weights."""
    first = load.requests[0]
    short = Load("warm-up", (type(first)(first.prompt_token_ids, 2),))

    make_core = partial(engine.core_for, "paged", prefix_caching=False, reserve="window")
    play(make_core, short, 2)
