"""Mistakes in the flags of adapters are told before a model is read."""

from pathlib import Path
from typing import Any

import pytest

from loire.base.config import EngineOptions
from loire.base.errors import LoireError
from loire.base.lora import LoRAModule
from loire.server.host.adapters import check_adapters
from loire.server.host.settings import ServerSettings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OPTIONS = EngineOptions


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_root": "nowhere"}, "--lora-root .*nowhere is no folder"),
        ({"lora_root": f"good/{CONFIG}"}, "is no folder"),
        ({"lora_modules": {"a": "nowhere"}}, "nowhere is no adapter in PEFT's format"),
        ({"lora_modules": {"a": "half"}}, "the adapter's weights are missing"),
        ({"lora_modules": {"m": "good"}}, "'m' is the name of the model itself"),
        ({"lora_modules": {"../a": "good"}}, "'../a' is no name for an adapter"),
        ({"lora_modules": {"a": "good"}, "options": OPTIONS(enable_lora=False)}, "switches them"),
        ({"options": OPTIONS(max_lora_rank=0)}, "max_lora_rank is 0, but lies between 1 and 512"),
    ],
)
def test_what_is_wrong_whatever_the_model(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    for name in ("good", "half"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).touch()
    (tmp_path / "good" / WEIGHTS).touch()
    given = dict(settings)
    modules = given.pop("lora_modules", {"a": "good"})
    if "lora_root" in given:
        given["lora_root"] = tmp_path / given["lora_root"]
    named = [LoRAModule(name, tmp_path / path) for name, path in modules.items()]
    with pytest.raises(LoireError, match=says):
        check_adapters(ServerSettings(model="m", names=("m",), lora_modules=named, **given))


def test_a_name_is_one_adapters(tmp_path: Path) -> None:
    check_adapters(ServerSettings(model="m", names=("m",), lora_root=tmp_path))
    twice = [LoRAModule("a", tmp_path)] * 2
    with pytest.raises(LoireError, match="--lora-modules has 2 named 'a'"):
        check_adapters(ServerSettings(model="m", names=("m",), lora_modules=twice))
