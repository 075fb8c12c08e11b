"""How each client is told of a server: variables, flags, and what its window is."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEY_VARIABLE = "LOIRE_API_KEY"
"""Where the key of a server with keys is taken from."""
_SHARE_OF_ANSWER = 4
"""A quarter of the window, at most, is an answer."""
_LONGEST_ANSWER = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server: its address without /v1, the model's name, its window in tokens, and the key."""

    url: str
    model: str
    window: int
    key: str

    @property
    def longest_answer(self) -> int:
        """Tokens that clients shall ask for."""
        return min(_LONGEST_ANSWER, self.window // _SHARE_OF_ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A command with its variables. files: written before, by their paths."""

    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client. needs: tokens with which it begins, about; note: what to know of its window."""

    install: str
    needs: int
    setup: Callable[[Target, Path], Setup]
    note: str = ""


def _codex(target: Target, folder: Path) -> Setup:
    """https://developers.openai.com/codex/config-reference"""
    provider = (
        f'{{name="Loire",base_url="{target.url}/v1",wire_api="responses",env_key="{KEY_VARIABLE}"}}'
    )
    settings = (
        "model_provider=loire",
        f"model_providers.loire={provider}",
        f"model_context_window={target.window}",
    )
    flags = [part for setting in settings for part in ("-c", setting)]
    return Setup(
        command=("codex", "-m", target.model, *flags), variables={KEY_VARIABLE: target.key}
    )


def _claude(target: Target, folder: Path) -> Setup:
    """https://code.claude.com/docs/en/env-vars"""
    names = ("MODEL", *(f"DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    return Setup(
        command=("claude",),
        variables={
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.key,
            **{f"ANTHROPIC_{name}": target.model for name in names},
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.longest_answer),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


def _opencode(target: Target, folder: Path) -> Setup:
    """https://opencode.ai/docs/config"""
    limit = {"context": target.window, "output": target.longest_answer}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Loire",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {target.model: {"name": target.model, "limit": limit}},
    }
    config = {"provider": {"loire": provider}, "model": f"loire/{target.model}"}
    return Setup(
        command=("opencode",),
        variables={"OPENCODE_CONFIG_CONTENT": json.dumps(config), KEY_VARIABLE: target.key},
    )


def _aider(target: Target, folder: Path) -> Setup:
    """https://aider.chat/docs/llms/openai-compat.html, docs/config/adv-model-settings.html"""
    name = f"openai/{target.model}"
    metadata = {
        name: {
            "max_input_tokens": target.window,
            "max_output_tokens": target.longest_answer,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        }
    }
    file = folder / "aider-model.json"
    return Setup(
        command=("aider", "--model", name, "--model-metadata-file", str(file)),
        variables={"OPENAI_API_BASE": f"{target.url}/v1", "OPENAI_API_KEY": target.key},
        files={file: json.dumps(metadata)},
    )


CLIENTS: Mapping[str, Client] = {
    "codex": Client(install="npm install -g @openai/codex", needs=12_000, setup=_codex),
    "claude": Client(
        install="npm install -g @anthropic-ai/claude-code",
        needs=20_000,
        setup=_claude,
        note="it counts on 200,000 tokens: /compact in time",
    ),
    "opencode": Client(install="npm install -g opencode-ai", needs=12_000, setup=_opencode),
    "aider": Client(install="pip install aider-chat", needs=4_000, setup=_aider),
}
