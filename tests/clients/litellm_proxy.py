"""LiteLLM's proxy in front: OpenAI's client and Anthropic's form through it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai

PORT = 8765
KEY = "sk-of-the-proxy"
MODEL = {
    "model_name": "river",
    "litellm_params": {
        "model": "openai/scripted",
        "api_base": os.environ["OPENAI_BASE_URL"],
        "api_key": "none",
    },
}
PARAMETERS = {"type": "object", "properties": {"station": {"type": "string"}}}


def ask_as_openai() -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=KEY)
    tool = {"type": "function", "function": {"name": "level", "parameters": PARAMETERS}}
    messages = []
    for station in ("Tours", "Blois"):
        messages.append({"role": "user", "content": f"How high is it at {station}?"})
        answer = client.chat.completions.create(
            model="river", messages=messages, tools=[tool]
        ).choices[0]
        [call] = answer.message.tool_calls
        assert json.loads(call.function.arguments) == {"station": station}
        messages += [
            answer.message,
            {"role": "tool", "tool_call_id": call.id, "content": f"{station}: 2.5 m"},
        ]
        chunks = client.chat.completions.create(
            model="river", messages=messages, tools=[tool], stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == f"It gave: {station}: 2.5 m", text
        messages.append({"role": "assistant", "content": text})


def ask_as_anthropic() -> None:
    tool = {"name": "level", "input_schema": PARAMETERS}
    body = {"model": "river", "max_tokens": 500, "tools": [tool]}
    messages = [{"role": "user", "content": "How high is it at Tours?"}]
    answer = httpx.post(
        f"http://127.0.0.1:{PORT}/v1/messages",
        json={**body, "messages": messages},
        headers={"x-api-key": KEY},
        timeout=60,
    ).json()
    [use] = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert use["input"] == {"station": "Tours"}
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "Tours: 2.5 m"}
    messages += [
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result]},
    ]
    answer = httpx.post(
        f"http://127.0.0.1:{PORT}/v1/messages",
        json={**body, "messages": messages},
        headers={"x-api-key": KEY},
        timeout=60,
    ).json()
    assert answer["content"][-1]["text"] == "It gave: Tours: 2.5 m", answer


with tempfile.TemporaryDirectory() as folder:
    config = Path(folder) / "config.yaml"
    config.write_text(json.dumps({"model_list": [MODEL]}))
    command = [
        Path(sys.executable).parent / "litellm",
        "--config",
        config,
        "--port",
        str(PORT),
        "--host",
        "127.0.0.1",
    ]
    keyed = {**os.environ, "LITELLM_MASTER_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=keyed) as proxy:
        try:
            while proxy.poll() is None:
                try:
                    httpx.get(f"http://127.0.0.1:{PORT}/health/liveliness").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            assert proxy.poll() is None, "the proxy has stopped"
            ask_as_openai()
            ask_as_anthropic()
        finally:
            proxy.terminate()
