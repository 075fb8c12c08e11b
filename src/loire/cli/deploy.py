"""Write the file with which Ray Serve keeps replicas of a model."""

import argparse
import json

from loire.cli.options import DEFAULT_MODEL, MODEL_HELP, add_engine_options, engine_options

_EPILOG = """\
The file goes to `serve deploy` or, as serveConfigV2, into KubeRay's RayService
(deploy/kuberay.yaml). In front of it, on a machine of the cluster:
RAY_ADDRESS=auto loire serve MODEL --replicas ray

  loire deploy smollm2 --replicas 4 --num-threads 2 > loire.yaml
  loire deploy smollm2 --replicas 2 --max-replicas 8 > loire.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire deploy`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    add("--replicas", type=int, default=1, help="engines at the start, and at least [1]")
    add("--max-replicas", type=int, help="engines at most, by what waits [no autoscaling]")
    add("--queued-tokens", type=float, help="that may wait per replica [8000]")
    add("--num-cpus", type=float, help="that Ray sets aside per replica [--num-threads, or 1]")
    add("--num-gpus", type=float, help="the same [0]")
    add(
        "--replica-timeout",
        dest="replica_timeout_s",
        type=float,
        metavar="SECONDS",
        help="an engine that gives no sign of life for that long is left [5]",
    )
    add_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    from loire.base.config import EngineOptions
    from loire.fleet.ray.args import APP, IMPORT_PATH, from_options
    from loire.fleet.ray.room import asked

    names = ("queued_tokens", "num_cpus", "num_gpus", "replica_timeout_s")
    more = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = EngineOptions(**engine_options(args))
    settled = from_options(args.model, options, (args.replicas, args.max_replicas), **more)
    print("# serve deploy loire.yaml")
    print(f"# It asks for {asked(settled)}; those that find no room wait, as `serve status` tells.")
    print("proxy_location: Disabled")
    print("applications:")
    print(f"  - name: {APP}")
    print(f"    import_path: {IMPORT_PATH}")
    print("    route_prefix: null")
    print("    args:")
    for name, value in settled.model_dump(exclude_defaults=True).items():
        # JSON is YAML, too.
        print(f"      {name}: {json.dumps(value)}")
    return 0
