"""Adapters that come and go while a server runs: who may say so, from where, and how it answers."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loire.base.messages import AdapterCounts, AnnouncedAdapter
from loire.checkpoint.open import open_checkpoint
from loire.engine import adapters as names_of_adapters
from loire.engine.adapters import AdapterNames
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.operations.live import LiveAdapters, adapters_of
from loire.server.serving.served import ServedModel
from support.adapter_files import adapter_tensors, save_adapter
from support.fake_engine import NAME, FakeEngine

ROOT, ALICE, BOB = "root-key-0123456789a", "alice-key-0123456789", "bob-key-0123456789ab"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
WEIGHTS = "adapter_model.safetensors"
Make = Callable[..., Path]


class Loaded:
    """An app over a fake engine, and what the engine was told of adapters."""

    def __init__(self, model: Path, root: Path | None) -> None:
        self.told: list[AnnouncedAdapter] = []
        self.served = ServedModel([NAME], FakeEngine(model))
        self.served.adapters = AdapterNames(open_checkpoint(model).description, self.told.append)
        self.served.adapters.reserved = frozenset([NAME])
        self.served.lora_root = root
        ring = KeyRing(
            [
                parse_key(f"root:{ROOT}", place="", admin=True),
                parse_key(f"alice:{ALICE} adapters=french,team/sql", place=""),
                parse_key(f"bob:{BOB} adapters=", place=""),
            ]
        )
        self.app: FastAPI = create_app(self.served, Access(ring=ring))

    def ask(self, method: str, path: str, body: Any = None, key: str = ROOT) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, json=body, headers=headers)

        return asyncio.run(send())

    def load(self, name: str, path: object, **more: Any) -> httpx.Response:
        return self.ask("POST", LOAD, {"lora_name": name, "lora_path": str(path), **more})

    def models(self, key: str = ROOT) -> dict[str, dict[str, Any]]:
        return {one["id"]: one for one in self.ask("GET", "/v1/models", key=key).json()["data"]}

    def refused(self, name: str, path: object, status: int = 400) -> str:
        """The sentence; nothing has changed."""
        before, told = self.models(), list(self.told)
        answer = self.load(name, path)
        assert answer.status_code == status, answer.text
        assert (self.models(), self.told) == (before, told)
        return str(answer.json()["error"]["message"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return (tmp_path / "root").resolve()


@pytest.fixture
def loaded(tiny_llama: Path, root: Path) -> Loaded:
    return Loaded(tiny_llama, root)


@pytest.fixture(scope="module")
def tensors(tiny_llama: Path) -> dict[str, torch.Tensor]:
    return adapter_tensors(AutoModelForCausalLM.from_pretrained(tiny_llama), 2)


@pytest.fixture
def make(root: Path, tensors: dict[str, torch.Tensor]) -> Make:
    """Saves an adapter below the root."""

    def save(name: str, scale: float = 1.0, **config: Any) -> Path:
        return save_adapter(root / name, {k: t * scale for k, t in tensors.items()}, 2, **config)

    return save


def test_as_vllm_answers(loaded: Loaded, make: Make, root: Path) -> None:
    path = make("french")
    answer = loaded.load("french", "french")
    assert (answer.status_code, answer.text) == (
        200,
        "Success: LoRA adapter 'french' added successfully.",
    )
    listed = loaded.models()["french"]
    assert (listed["parent"], listed["root"]) == (NAME, "french")
    assert loaded.ask("GET", "/v1/models/french").json() == listed
    again = loaded.load("french", path)
    assert again.status_code == 400
    assert again.json()["error"]["message"] == (
        "The lora adapter 'french' has already been loaded. If you want to load the adapter in "
        "place, set 'load_inplace' to True."
    )
    for body in ({}, {"lora_name": "x"}, {"lora_path": "x"}):
        answer = loaded.ask("POST", LOAD, body)
        assert answer.status_code == 400
        assert "Both 'lora_name' and 'lora_path' must be provided." in answer.text
    assert "No adapter found for nowhere" in loaded.refused("y", "nowhere", 404)
    answer = loaded.ask("POST", UNLOAD, {"lora_name": "french"})
    assert answer.text == "Success: LoRA adapter 'french' removed successfully."
    assert [*loaded.models()] == [NAME]
    answer = loaded.ask("POST", UNLOAD, {"lora_name": "french"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "The lora adapter 'french' cannot be found."
    assert loaded.ask("POST", UNLOAD, {}).status_code == 400


def test_what_the_engine_is_told(loaded: Loaded, make: Make, root: Path) -> None:
    """Content by its hash; a name that stands for other content withdraws what it stood for."""
    make("a", 1.0), make("b", 2.0)
    assert loaded.load("x", "a", pinned=True).status_code == 200
    assert loaded.load("same", "a").status_code == 200
    [first, second] = loaded.told
    assert first == second == AnnouncedAdapter(first.identity, str(root / "a"), pinned=True)
    assert loaded.load("x", "b", load_inplace=True).status_code == 200
    [other, unpinned] = loaded.told[2:]
    assert other.identity != first.identity
    assert unpinned == AnnouncedAdapter(first.identity, str(root / "a"))
    assert loaded.ask("POST", UNLOAD, {"lora_name": "same"}).status_code == 200
    assert loaded.told[-1] == AnnouncedAdapter(first.identity, str(root / "a"), withdrawn=True)
    assert loaded.load("x", "b", load_inplace=True).status_code == 200
    assert loaded.told[-1] == AnnouncedAdapter(other.identity, str(root / "b"))
    listing = loaded.ask("GET", "/admin/adapters").json()
    assert [(one["name"], one["rank"], one["pinned"]) for one in listing["data"]] == [
        ("x", 2, False)
    ]


def test_only_with_a_root_and_only_for_admins(tiny_llama: Path, loaded: Loaded, make: Make) -> None:
    make("french")
    closed = Loaded(tiny_llama, None)
    for path in (LOAD, UNLOAD):
        answer = closed.ask("POST", path, {"lora_name": "french", "lora_path": "french"})
        assert answer.status_code == 403
        assert "--lora-root" in answer.json()["error"]["message"]
        answer = loaded.ask("POST", path, {"lora_name": "french", "lora_path": "french"}, ALICE)
        assert answer.status_code == 403
        assert "admin key" in answer.json()["error"]["message"]
    assert loaded.ask("GET", "/admin/adapters", key=ALICE).status_code == 403
    assert [*loaded.models()] == [NAME]


def test_nothing_from_elsewhere(loaded: Loaded, make: Make, root: Path, tmp_path: Path) -> None:
    inside = make("inside")
    outside = tmp_path / "outside"
    save_adapter(outside, load_file(inside / WEIGHTS), 2)
    (root / "link").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "half").mkdir()
    (root / "half" / "adapter_config.json").write_text((inside / "adapter_config.json").read_text())
    (root / "half" / WEIGHTS).symlink_to(outside / WEIGHTS)
    (root / "near").symlink_to(inside)
    for path in (
        outside, "../outside", "inside/../../outside", "link", "half", "/etc", "/nowhere", ".", "",
        root, f"{root}/../outside", f"{root}x", "in\0side",
    ):  # fmt: skip
        message = loaded.refused("x", path)
        assert ("leads elsewhere" if path else "must be provided") in message, path
    assert "No adapter found" in loaded.refused("x", "loop", 404)
    # Links that stay inside, such as those of the hub's cache, are no harm.
    assert loaded.load("x", "near").status_code == 200
    assert loaded.load("y", inside).status_code == 200


def test_bad_adapters_change_nothing(
    loaded: Loaded, make: Make, root: Path, tensors: dict[str, torch.Tensor]
) -> None:
    """Each with its own sentence, beside one that goes on."""
    make("good")
    assert loaded.load("good", "good").status_code == 200

    def bad(what: str, changed: dict[str, torch.Tensor] | None = None, **config: Any) -> str:
        path = make(what, **config)
        if changed is not None:
            save_file(changed, path / WEIGHTS)
        return loaded.refused("bad", what)

    first = next(name for name in tensors if ".lora_A." in name)
    rest = {name: tensor for name, tensor in tensors.items() if name != first}
    other = {name.replace("self_attn", "attention"): tensor for name, tensor in tensors.items()}
    assert "was it made for another one?" in bad("base", other)
    assert "this model needs" in bad("shapes", {**rest, first: tensors[first][:, 1:].contiguous()})
    assert "is missing" in bad("halves", rest)
    assert "r should be" in bad("rank", r=0)
    nan = torch.full_like(tensors[first], float("nan"))
    assert "not finite" in bad("nan", {**rest, first: nan})
    assert "adapters have F32, F16, BF16" in bad(
        "kind", {**rest, first: tensors[first].to(torch.int8)}
    )
    assert "holds no adapter" in bad("none", {})
    path = make("short")
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-5])
    assert "truncated" in loaded.refused("bad", "short")
    (path / WEIGHTS).unlink()
    assert "weights are missing" in loaded.refused("bad", "short")
    make("short")
    (path / "adapter_config.json").write_text("{")
    assert "adapter_config.json" in loaded.refused("bad", "short")
    (path / "adapter_config.json").unlink()
    assert "no adapter_config.json" in loaded.refused("bad", "short", 404)
    for name in ("../x", "a/../b", "/etc/passwd", "a b", "a\nb", "x" * 201, "..", NAME):
        assert "name" in loaded.refused(name, "good")
    assert {*loaded.models()} == {NAME, "good"}


def test_there_is_a_most_of_them(
    loaded: Loaded, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a")
    monkeypatch.setattr(names_of_adapters, "MOST_NAMES", 3)
    for number in range(3):
        assert loaded.load(f"x{number}", "a").status_code == 200
    assert "there are 3 adapters, which is the most" in loaded.refused("x3", "a")
    assert loaded.load("x1", "a", load_inplace=True).status_code == 200


def test_a_tenant_has_its_own(loaded: Loaded, make: Make) -> None:
    """Others' names are names of nobody, in every route."""
    make("a")
    for name in ("french", "team/sql", "secret"):
        assert loaded.load(name, "a").status_code == 200
    assert [*loaded.models()] == [NAME, "french", "team/sql", "secret"]
    assert [*loaded.models(ALICE)] == [NAME, "french", "team/sql"]
    assert [*loaded.models(BOB)] == [NAME]
    messages = [{"role": "user", "content": "hi"}]
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 2},
        "/v1/completions": {"prompt": "hi", "max_tokens": 2},
        "/v1/responses": {"input": "hi", "max_output_tokens": 2, "store": False},
        "/v1/messages": {"messages": messages, "max_tokens": 2},
        "/v1/messages/count_tokens": {"messages": messages},
        "/v1/embeddings": {"input": "hi"},
        "/tokenize": {"prompt": "hi"},
        "/detokenize": {"tokens": [5]},
    }
    for path, body in bodies.items():

        def ask(model: str, key: str, path: str = path, body: Any = body) -> httpx.Response:
            return loaded.ask("POST", path, {"model": model, **body}, key)

        assert ask("french", ALICE).status_code != 404, path
        assert ask("secret", ROOT).status_code != 404, path
        unknown = ask("nobody", ALICE)
        assert unknown.status_code == 404, path
        for model, key in (("secret", ALICE), ("french", BOB)):
            answer = ask(model, key)
            assert answer.status_code == 404, path
            assert answer.text == unknown.text.replace("nobody", model)
    assert loaded.ask("GET", "/v1/models/secret", key=ALICE).status_code == 404
    assert loaded.ask("GET", "/v1/models/team/sql", key=ALICE).status_code == 200


def test_the_page_shows_how_they_stand(tiny_llama: Path, loaded: Loaded, make: Make) -> None:
    engine = FakeEngine(tiny_llama)
    engine.adapters = AdapterCounts(num_resident=1, num_bytes=8, hits=5, loads=2, evictions=1)
    loaded.served.set_ready(engine)
    make("a")
    assert adapters_of(ServedModel([NAME])) is None
    assert loaded.load("x", "a").status_code == 200
    assert adapters_of(loaded.served) == LiveAdapters(
        named=1, num_resident=1, num_bytes=8, hits=5, loads=2, evictions=1
    )
    listing = loaded.ask("GET", "/admin/adapters").json()
    assert (listing["num_resident"], listing["hits"], listing["evictions"]) == (1, 5, 1)


def test_metrics_name_them_to_those_who_may_know(loaded: Loaded, make: Make) -> None:
    make("a")
    assert loaded.load("secret", "a").status_code == 200
    text = loaded.ask("GET", "/metrics").text
    assert (
        'vllm:lora_requests_info{max_lora="4096",running_lora_adapters="",waiting_lora_adapters=""}'
        in text
    )
    assert "loire_adapters_loaded 0.0" in text
    assert "loire_adapter_evictions_total 0.0" in text
    assert "lora_requests_info" not in loaded.ask("GET", "/metrics", key=ALICE).text
