"""Clients as they come, each in an environment of its own, over the scripted server: two turns
with a tool each. Slow, since they are installed first (into LOIRE_CLIENTS, where they stay)."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.scripted_server import Call, Script, caller, scripted_server, with_template
from support.server_process import start, wait_for

HERE = Path(__file__).parent
LEVELS: Sequence[Call] = [("level", {"station": "Tours"}), ("level", {"station": "Blois"})]
_FINAL = json.dumps({"name": "final_answer", "arguments": {"answer": "2.5 m at Tours"}})


def _fields(**fields: str) -> str:
    """A text in the form in which DSPy reads fields."""
    parts = [f"[[ ## {name} ## ]]\n{text}" for name, text in fields.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


CLIENTS: dict[str, tuple[str, list[str], Script]] = {
    "agents": ("openai_agents", ["openai-agents"], caller(LEVELS)),
    "pydantic-ai": (
        "pydantic_agents", ["pydantic-ai-slim[openai,anthropic]"], caller(LEVELS)
    ),
    "langgraph": (
        "langgraph_agents", ["langgraph", "langchain-openai", "langchain-anthropic"],
        caller(LEVELS),
    ),
    "llama-index": (
        "llama_index_agent", ["llama-index-core", "llama-index-llms-openai-like"], caller(LEVELS)
    ),
    "litellm": ("litellm_proxy", ["litellm[proxy]"], caller(LEVELS)),
    "instructor": (
        "instructor_models", ["instructor"],
        caller([("Level", {"station": "Tours", "metres": 2.5})],
               [(r"(?s)\A(?!.*start\|>tools)", '{"station": "Tours", "metres": 2.5}')]),
    ),
    "smolagents": (
        "smolagents_agent", ["smolagents[openai]"],
        caller(LEVELS, [(r"Observation:\s+Tours: 2.5 m", f"<tool_call>\n{_FINAL}\n</tool_call>")]),
    ),
    "dspy": (
        "dspy_program", ["dspy"],
        caller((), [
            (r"\[\[ ## reasoning ## \]\]", _fields(reasoning="Seen.", answer="2.5 m at Tours")),
            ("observation_0", _fields(
                next_thought="I know.", next_tool_name="finish", next_tool_args="{}")),
            ("next_tool_name", _fields(
                next_thought="I look.", next_tool_name="level",
                next_tool_args='{"station": "Tours"}')),
        ]),
    ),
}  # fmt: skip
"""By the folder of their environment: script, packages, and what the model says."""


def environment(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages."""
    folder = Path(os.environ.get("LOIRE_CLIENTS", Path(tempfile.gettempdir()) / "loire-clients"))
    python = folder / name / "bin" / "python"
    done = folder / name / ".done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        install = [python, "-m", "pip", "install", "-q", *packages]
        subprocess.run(install, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})
        done.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", CLIENTS)
def test_two_turns_with_a_tool_each(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    script, packages, says = CLIENTS[name]
    python = environment(name, packages)
    with scripted_server(with_template(tiny_llama, tmp_path / "model"), says) as url:
        variables = {
            **os.environ,
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "none",
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "none",
            # They ask nobody else.
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "HF_HUB_OFFLINE": "1",
        }
        command = [python, HERE / f"{script}.py"]
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False, timeout=300
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@contextmanager
def tiny_server(model: Path) -> Iterator[str]:
    """The address of a server of a tiny model, kernels and all."""
    server = start(model, "--dtype", "float32", "--kv-cache-memory", "64MB")
    try:
        wait_for(lambda: "ready after" in "".join(server.log), 120)
        yield server.url
    finally:
        server.process.terminate()
        server.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_evaluation_harness_finds_what_transformers_gives(tmp_path: Path) -> None:
    """Through both of its clients for servers: scores, log-likelihoods and texts."""
    from support.tiny_models import save_tiny_llama

    python = environment("lm-eval", ["lm_eval[api]", "torch", "transformers", "accelerate"])
    model = save_tiny_llama(tmp_path / "model", max_positions=2048)
    with tiny_server(model) as url:
        done = subprocess.run(
            [python, HERE / "lm_evaluation.py"],
            env={**os.environ, "MODEL": str(model), "LOIRE_URL": url,
                 "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_guidellm_measures_every_request(path: str, tmp_path: Path) -> None:
    from support.tiny_models import save_tiny_llama

    guidellm = environment("guidellm", ["guidellm"]).with_name("guidellm")
    model = save_tiny_llama(tmp_path / "model", max_positions=2048)
    report = tmp_path / "report.json"
    with tiny_server(model) as url:
        done = subprocess.run(
            [guidellm, "run", "--disable-console",
             "--backend", f"kind=openai_http,target={url},request_format={path}",
             "--profile", "kind=concurrent,streams=4",
             "--constraint", "kind=max_requests,count=8",
             "--tokenizer", f"kind=hf_auto,model={model}",
             "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
             "--output", f"kind=json,path={report}"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["successful"]), requests["errored"]) == (8, [])
    assert {request["output_tokens"] for request in requests["successful"]} == {16}
