"""`loire simulate`: traces in, figures and pictures out."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loire.cli.main import main
from loire.fleet.step_costs import StepCosts


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "mooncake.jsonl"
    lines = [
        {"timestamp": 200 * i, "input_length": 1500, "output_length": 5 + i, "hash_ids": [0, i, 9]}
        for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["simulate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_a_result_per_routing(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (trace, "--replicas", "3", "--routing", "work", "--routing", "random")
    first = run(capsys, *arguments, "--price", "2")
    assert [result["routing"] for result in first["results"]] == ["work", "random"]
    for result in first["results"]:
        assert result["num_requests"] == 12
        assert result["num_prompt_tokens"] == 18_000
        assert result["num_output_tokens"] == sum(range(5, 17))
        assert 0 <= result["hit_rate"] <= result["hit_bound"] < 0.4
        assert result["cost_per_million_tokens"] > 0
        assert len(result["over_time"]) > 100
    assert run(capsys, *arguments, "--price", "2") == first


def test_costs_come_from_a_file(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = tmp_path / "slow.json"
    StepCosts(1.0, 0.0, 0.0, 0.0, "a slow machine").save(slow)
    result = run(capsys, trace, "--cost", str(slow))["results"][0]
    assert result["tpot_s"]["p50"] == pytest.approx(1.0)
    assert result["goodput"] == 0.0


def test_agents_are_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("agents", "--sessions", "5", "--replicas", "2")
    result = run(capsys, *arguments)
    assert run(capsys, *arguments) == result
    assert run(capsys, *arguments, "--seed", "1") != result
    assert result["results"][0]["hit_rate"] > 0.5


def test_pictures_are_written(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, image = tmp_path / "fleet.html", tmp_path / "fleet.svg"
    files = ["--html", str(page), "--svg", str(image)]
    assert main(["simulate", trace, "--autoscale", "1:3", *files]) == 0
    assert "12 requests" in capsys.readouterr().out
    assert page.read_text().count("<polyline") == 3
    drawing = ElementTree.fromstring(image.read_text())
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}polyline"))) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kv-tokens", "1000"], "12 of 12 requests are larger"),
        (["--autoscale", "3"], "is not a range such as 1:16"),
        (["--speed", "0"], "is not above 0"),
        (["--replicas", "0"], "at least one replica"),
        (["--cost", "/nowhere"], "holds no costs"),
    ],
)
def test_what_cannot_be_is_refused(
    trace: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace, *arguments]) == 1
    assert says in capsys.readouterr().err
