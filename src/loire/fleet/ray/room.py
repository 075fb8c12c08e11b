"""Whether the replicas that somebody asks for have room on a cluster, in words."""

from collections.abc import Mapping, Sequence

from loire.fleet.ray.args import Args

Resources = Mapping[str, float]
"""By Ray's names for them: CPU, GPU and others."""

_MANY = 10**6
"""As many as replicas that ask for nothing may be on a machine."""


def needs(args: Args) -> dict[str, float]:
    """What Ray sets aside for each replica."""
    each = {"CPU": args.num_cpus, "GPU": args.num_gpus}
    return {kind: count for kind, count in each.items() if count}


def capacity(each: Resources, machines: Sequence[Resources]) -> int:
    """How many replicas machines hold that have nothing else to do. A replica is on one machine."""
    return sum(
        min((int(has.get(kind, 0) / need + 1e-9) for kind, need in each.items()), default=_MANY)
        for has in machines
    )


def asked(args: Args) -> str:
    """What is asked of a cluster."""
    num = args.replicas
    most = "" if args.max_replicas in (None, num) else f" (up to {args.max_replicas})"
    each = listed(needs(args)) or "nothing"
    return f"{num} {'replica' if num == 1 else 'replicas'}{most}, {each} for each"


def lacking(args: Args, machines: Sequence[Resources]) -> str:
    """What a cluster lacks; empty if it holds all replicas that there are at the start."""
    each = needs(args)
    room = capacity(each, machines)
    if room >= args.replicas:
        return ""
    has = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in each}
    most = {kind: max((m.get(kind, 0) for m in machines), default=0) for kind in each}
    where = "its machine has" if len(machines) == 1 else f"its {len(machines)} machines have"
    text = f"{where} {listed(has)}, room for {room}"
    if too_large := [kind for kind in each if each[kind] > most[kind]]:
        text += f" (none has {listed({kind: each[kind] for kind in too_large})})"
    return f"{text}: {args.replicas - room} will wait for more machines, or ask for fewer replicas"


def listed(resources: Resources) -> str:
    """Amounts as one writes them."""
    return " and ".join(f"{count:g} {kind}" for kind, count in resources.items())
