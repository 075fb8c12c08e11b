"""The examples in deploy/ say what `loire serve` understands."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from loire.cli import serve
from loire.server.host.app import create_app
from loire.server.host.run import FLUSH_S
from loire.server.serving.served import ServedModel

FILE = Path(__file__).parents[3] / "deploy/kubernetes.yaml"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return {document["kind"]: document for document in yaml.safe_load_all(FILE.read_text())}


@pytest.fixture(scope="module")
def pod(documents: dict[str, Any]) -> dict[str, Any]:
    return documents["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def arguments(pod: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    name, verb, *flags = pod["containers"][0]["command"]
    assert (name, verb) == ("loire", "serve")
    return parser.parse_args(flags)


def test_ports_are_those_that_the_server_opens(
    pod: dict[str, Any], arguments: argparse.Namespace
) -> None:
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports == {"http": arguments.port, "metrics": arguments.metrics_port}
    assert arguments.host == "0.0.0.0"


def test_probes_ask_for_routes_that_are_there(pod: dict[str, Any]) -> None:
    paths = create_app(ServedModel(["m"])).openapi()["paths"]
    container = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def test_the_grace_period_fits(pod: dict[str, Any], arguments: argparse.Namespace) -> None:
    assert arguments.grace_period_s + FLUSH_S < pod["terminationGracePeriodSeconds"] < 60


def test_what_the_server_reads_and_writes_is_mounted(
    documents: dict[str, Any], pod: dict[str, Any], arguments: argparse.Namespace
) -> None:
    container = pod["containers"][0]
    mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    homes = [Path(variable["value"]) for variable in container["env"]]
    for path in (*arguments.api_key_file, arguments.data_dir, *homes):
        assert any(path.is_relative_to(mount) for mount in mounts), path
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == documents["PersistentVolumeClaim"]["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"] is True
