"""Taking turns on one workload, and what came of it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loire.planning.this_machine import Measurement
from loire.workloads.loads import read_workload
from loire.workloads.measure import measure_machine
from peers.limits import limit_s
from peers.process import Peer

TIMES = ("wall_s", "ttft_s", "tpot_s")
WARM_UP_OUT = 16


@dataclass(frozen=True, slots=True)
class Result:
    """One engine on one workload: medians over its turns, times in seconds."""

    workload: str
    number_format: str
    engine: str
    start_s: float
    wall_s: float
    ttft_s: float
    """Of the first request."""
    tpot_s: float
    """Of the first request: per output token after its first."""
    output_tokens_per_s: float
    bandwidth_bytes_per_s: float
    """Of the machine at that time, as `flops`, in bfloat16."""
    flops: float
    limit_share: float
    """The workload's simple limit, with the bytes that Loire reads, over wall_s."""
    loire_faster: dict[str, float]
    """Median over the turns of this engine's time over Loire's, per time; empty for Loire."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def take_turns(
    peers: Sequence[Peer],
    model: Path,
    number_format: str,
    workload: Path,
    *,
    prefix: bool,
    repeat: int,
) -> list[Result]:
    """Each turn runs every engine on the same variant, a different one first each time.

    peers[0] is Loire. The first tokens of variant 0 warm up; a workload with one variant
    is run `repeat` times. The machine is measured before and after, with all engines stopped, and
    the better of the two counts: others may use it as well.
    """
    loads = read_workload(workload)
    variants = list(range(1, len(loads))) if len(loads) > 1 else [0] * repeat
    for peer in peers:
        peer.run(workload, 0, WARM_UP_OUT)
    before = measure_machine()
    turns: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for turn, variant in enumerate(variants):
        first = turn % len(peers)
        for peer in (*peers[first:], *peers[:first]):
            result = peer.run(workload, variant)
            asked = loads[variant].num_output_tokens
            if result["output_tokens"] != asked:
                raise RuntimeError(
                    f"{peer.engine} gave {result['output_tokens']:.0f} output tokens on "
                    f"{workload.stem}, but {asked} were asked for: this compares nothing"
                )
            turns[peer.name].append(result)
            print(_line(workload.stem, variant, peer.engine, result), flush=True)
    load = loads[variants[0]]
    after = measure_machine()
    machine = Measurement(
        bandwidth_bytes_per_s=max(before.bandwidth_bytes_per_s, after.bandwidth_bytes_per_s),
        flops=max(before.flops, after.flops),
    )
    print(
        f"{workload.stem}: this machine reads {machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s and "
        f"multiplies {machine.flops / 1e12:.2f} TFLOP/s in bfloat16",
        flush=True,
    )
    limit = limit_s(model, peers[0].weight_bytes, load, prefix, machine)
    own = turns[peers[0].name]
    results = []
    for peer in peers:
        times = {key: statistics.median(turn[key] for turn in turns[peer.name]) for key in TIMES}
        ratios = {
            key: statistics.median(
                theirs[key] / ours[key] for theirs, ours in zip(turns[peer.name], own, strict=True)
            )
            for key in TIMES
            if times[key] > 0 and all(ours[key] > 0 for ours in own)
        }
        results.append(
            Result(
                workload=workload.stem,
                number_format=number_format,
                engine=peer.engine,
                start_s=peer.start_s,
                output_tokens_per_s=load.num_output_tokens / times["wall_s"],
                bandwidth_bytes_per_s=machine.bandwidth_bytes_per_s,
                flops=machine.flops,
                limit_share=limit / times["wall_s"],
                loire_faster=ratios if peer is not peers[0] else {},
                **times,
            )
        )
    return results


def _line(workload: str, variant: int, engine: str, result: dict[str, float]) -> str:
    decode = 1 / result["tpot_s"] if result["tpot_s"] else 0.0
    return (
        f"{workload} {variant} {engine:<40} {result['wall_s']:8.3f} s  "
        f"{result['output_tokens'] / result['wall_s']:8.1f} output tok/s  "
        f"TTFT {result['ttft_s']:.3f} s  decode {decode:7.2f} tok/s"
    )


def table(results: Sequence[Result]) -> str:
    """Markdown. Ratios above 1: Loire is faster; the share is of the engine's own wall time."""
    lines = [
        "| load | engine | wall s | first token s | output tok/s | share of the limit "
        "| Loire: wall | first token | per token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ratios = [
            f"{result.loire_faster[key]:.2f}x" if key in result.loire_faster else ""
            for key in TIMES
        ]
        lines.append(
            f"| {result.workload} | {result.engine} | {result.wall_s:.2f} | {result.ttft_s:.3f} "
            f"| {result.output_tokens_per_s:.1f} | {result.limit_share:.0%} "
            f"| {' | '.join(ratios)} |"
        )
    return "\n".join(lines)
