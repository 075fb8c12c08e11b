"""What of replicas on Ray can be told without Ray."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loire.base.config import EngineOptions
from loire.base.errors import ConfigError
from loire.cli.main import main
from loire.cli.serve import parse_replicas
from loire.fleet.ray.args import Args, from_options
from loire.fleet.ray.auth import require_token
from loire.fleet.ray.policy import QueuedTokensPolicy
from loire.fleet.ray.room import asked, lacking


@dataclass
class Context:
    """As much of Ray's AutoscalingContext as the policy reads."""

    target_num_replicas: int
    aggregated_metrics: dict[str, dict[str, float]] | None = None
    current_time: float | None = 0.0
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 4
    policy_state: dict[str, Any] = field(default_factory=dict)


def recorded(tokens: list[float], occupancy: list[float]) -> dict[str, dict[str, float]]:
    def by_replica(values: list[float]) -> dict[str, float]:
        return {str(index): value for index, value in enumerate(values)}

    return {"queued_tokens": by_replica(tokens), "occupancy": by_replica(occupancy)}


def test_the_policy_follows_what_waits() -> None:
    policy = QueuedTokensPolicy(target_queued_tokens=1000.0, down_after_s=10.0)
    up, state = policy(Context(1, recorded([2500.0], [1.0])))
    assert up == 2
    assert policy(Context(2, recorded([9000.0, 9000.0], [1.0, 1.0])))[0] == 4
    seen = []
    for now_s in (0.0, 5.0, 10.0, 15.0, 20.0):
        idle = recorded([0.0] * up, [0.0] * up)
        up, state = policy(Context(up, idle, now_s, policy_state=state))
        seen.append(up)
    assert seen == [2, 2, 1, 1, 1]


def test_replicas_that_have_told_nothing_are_taken_for_full() -> None:
    policy = QueuedTokensPolicy(target_queued_tokens=1000.0, down_after_s=0.0)
    assert policy(Context(2))[0] == 2


@pytest.mark.parametrize(
    ("text", "means"), [("ray", (1, None)), ("ray:4", (4, None)), ("ray:2:8", (2, 8))]
)
def test_numbers_of_replicas(text: str, means: tuple[int, int | None]) -> None:
    assert parse_replicas(text) == means


@pytest.mark.parametrize("text", ["", "4", "ray:", "ray:0", "ray:8:2", "ray:1:2:3", "dask:2"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is none of"):
        parse_replicas(text)


def test_args_keep_what_was_given_and_settle_threads() -> None:
    args = from_options("m", EngineOptions(dtype="float32", num_threads=2), (2, 8))
    assert (args.options, args.num_cpus) == ({"dtype": "float32", "num_threads": 2}, 2.0)
    assert args.engine_options() == EngineOptions(dtype="float32", num_threads=2)
    # Else each replica of a machine would take all its cores.
    assert Args(model="m", num_cpus=3.0).engine_options().num_threads == 3
    with pytest.raises(ConfigError, match="no engine options colour"):
        Args(model="m", options={"colour": 1}).engine_options()


@pytest.mark.parametrize(
    ("flags", "cores", "what"),
    [
        ((2, None, 1.0), [2], ""),
        ((2, 8, 1.0), [1, 1], ""),
        ((4, None, 1.0), [2], "its machine has 2 CPU, room for 2: 2 will wait"),
        ((3, None, 2.0), [3, 3], "its 2 machines have 6 CPU, room for 2: 1 will wait"),
        ((1, None, 4.0), [2, 2], "room for 0 (none has 4 CPU): 1 will wait"),
        ((1, None, 1.0), [], "its 0 machines have 0 CPU"),
    ],
)
def test_what_a_cluster_lacks_is_said(
    flags: tuple[int, int | None, float], cores: list[int], what: str
) -> None:
    num, most, num_cpus = flags
    args = Args(model="m", replicas=num, max_replicas=most, num_cpus=num_cpus)
    said = lacking(args, [{"CPU": float(count), "memory": 1e9} for count in cores])
    assert what in said if what else not said
    assert f"{num_cpus:g} CPU for each" in asked(args)


def test_deploy_writes_what_the_application_takes(capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    flags = ["--replicas", "2", "--max-replicas", "8", "--num-threads", "2", "--num-gpus", "1"]
    assert main(["deploy", "smollm2", *flags]) == 0
    [application] = yaml.safe_load(capsys.readouterr().out)["applications"]
    args = Args(**application["args"])
    assert (args.replicas, args.max_replicas, args.num_gpus) == (2, 8, 1.0)
    assert main(["deploy", "smollm2", "--replica-timeout", "1"]) == 1
    assert "--replica-timeout: Input should be greater" in capsys.readouterr().err
    assert main(["serve", "smollm2", "--replica-timeout", "9"]) == 1
    assert "goes with --replicas" in capsys.readouterr().err
    assert main(["deploy", "smollm2", "--replicas", "0"]) == 1
    assert "greater than or equal to 1" in capsys.readouterr().err


def test_the_example_for_kuberay_is_one_of_those() -> None:
    yaml = pytest.importorskip("yaml")
    path = Path(__file__).parents[3] / "deploy/kuberay.yaml"
    service = next(d for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "RayService")
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    Args(**application["args"]).engine_options()
    assert application["import_path"] == "loire.fleet.ray.app:build"
    assert service["spec"]["rayClusterConfig"]["authOptions"]["mode"] == "token"


def test_there_is_no_cluster_without_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "")
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="runs code there"):
        require_token()
    # Restored at the end of the test, whatever require_token() sets.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    import os

    require_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    require_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
