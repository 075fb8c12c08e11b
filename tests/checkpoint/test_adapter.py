"""Reading adapters: what they say, and what is refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loire.base.errors import ModelError
from loire.checkpoint.adapter import Adapter, open_adapter
from loire.checkpoint.adapter_settings import AdapterSettings
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.open import open_checkpoint
from support.adapter_files import adapter_tensors, save_adapter, target_parameters
from support.tiny_models import save_tiny_llama

Given = tuple[ModelDescription, Path]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A model of two layers, and an adapter of rank 4 for it."""
    from transformers import AutoModelForCausalLM

    save_tiny_llama(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapter = save_adapter(tmp_path / "adapter", adapter_tensors(model, 4), 4)
    return open_checkpoint(tmp_path / "model").description, adapter


def changed(path: Path, **config: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def scales(adapter: Adapter) -> dict[str, float]:
    return {part.down.name.split(".layers.")[1]: part.scale for part in adapter.parts}


def test_ranks_and_scales(given: Given) -> None:
    description, path = given
    adapter = open_adapter(path, description)
    assert len(adapter.parts) == 14
    assert adapter.rank == 4
    assert {part.scale for part in adapter.parts} == {2.0}
    changed(path, use_rslora=True, init_lora_weights="eva")
    assert {part.scale for part in open_adapter(path, description).parts} == {4.0}
    changed(path, use_rslora=False, alpha_pattern={"^model\\.layers\\.1\\.mlp\\.up_proj$": 1})
    assert scales(open_adapter(path, description))["1.mlp.up_proj.lora_A.weight"] == 0.25
    assert scales(open_adapter(path, description))["0.mlp.up_proj.lora_A.weight"] == 2.0
    changed(path, alpha_pattern={"q_proj": 12}, rank_pattern={"q_proj": 4}, r=8)
    with pytest.raises(ModelError, match=r"with rank 8 this model needs \[8, 128\]"):
        open_adapter(path, description)


def test_identity_is_the_content(given: Given, tmp_path: Path) -> None:
    description, path = given
    first = open_adapter(path, description).identity
    other = tmp_path / "other"
    path.rename(other)
    assert open_adapter(other, description).identity == first
    changed(other, lora_alpha=9)
    second = open_adapter(other, description).identity
    tensors = load_file(other / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, other / "adapter_model.safetensors")
    assert len({first, second, open_adapter(other, description).identity}) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"kasa_config": {"beta": 1e-4}}, "KaSA"),
        ({"init_lora_weights": "pissa_niter_4"}, "PiSSA .* changes the model's own weights"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters names 'experts.down_pro"),
        ({"target_parameters": "down_proj"}, "target_parameters should be a list of names"),
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"r": 0}, "r should be"),
        ({"r": 513}, "r should be"),
        ({"r": "4"}, "r should be"),
        ({"rank_pattern": {"(a+)+b": 4}}, "regular expressions are not supported"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj should be"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
    ],
)
def test_settings_that_are_refused(given: Given, config: dict[str, Any], message: str) -> None:
    description, path = given
    changed(path, **config)
    with pytest.raises(ModelError, match=message):
        open_adapter(path, description)


def test_weights_that_are_refused(given: Given) -> None:
    description, path = given
    file = path / "adapter_model.safetensors"
    good = load_file(file)
    first = next(name for name in sorted(good) if "lora_A" in name)
    stem = "base_model.model.model.layers.7.mlp.up_proj"

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, file)
        with pytest.raises(ModelError, match=message):
            open_adapter(path, description)

    refused({name: t for name, t in good.items() if name != first}, r"lora_A of .* is missing")
    refused({**good, first: torch.full_like(good[first], float("inf"))}, "not finite")
    refused({**good, first: good[first][:, 1:].contiguous()}, "this model needs")
    refused({**good, first: good[first].int()}, "is I32")
    halves = {f"{stem}.lora_A.weight": torch.ones(4, 64), f"{stem}.lora_B.weight": torch.ones(1, 4)}
    refused({**good, **halves}, "was it made for another one")
    refused({**good, "base_model.model.../../x": torch.ones(1)}, "no half of an adapted")
    for name in (f"{stem}.lora_embedding_A", "model.embed_tokens.base_layer.weight"):
        refused({name: torch.ones(4, 1)}, "embeddings are not supported")
    refused({}, "holds no adapter")
    copy = "base_model.model.lm_head.base_layer.weight"
    refused({**good, copy: torch.ones(2, 64)}, r"holds a head of \[2, 64\], but this model's")
    save_file(good, file)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ModelError, match=r"damaged|truncated"):
        open_adapter(path, description)
    file.rename(path / "adapter_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        open_adapter(path, description)
    with pytest.raises(ModelError, match=r"has no adapter_config.json"):
        open_adapter(path / "nothing", description)


@pytest.fixture
def of_experts(tmp_path: Path) -> tuple[ModelDescription, Path, dict[str, torch.Tensor]]:
    """A model with 4 experts of 64 inputs, an adapter of rank 3, and its tensors."""
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    tensors = adapter_tensors(model, 3, None)
    adapter = tmp_path / "adapter"
    save_adapter(adapter, tensors, 3, target_parameters=target_parameters(model))
    return open_checkpoint(tmp_path / "model").description, adapter, tensors


Experts = tuple[ModelDescription, Path, dict[str, torch.Tensor]]
DOWN, GATE_UP = (f"base_model.model.model.layers.0.mlp.experts.{x}" for x in ("", "base_layer."))


def test_experts_that_are_refused(of_experts: Experts) -> None:
    description, path, good = of_experts
    assert {part.scale for part in open_adapter(path, description).parts} == {2.0}
    file = path / "adapter_model.safetensors"

    def refused(tensors: dict[str, torch.Tensor], message: str, **config: Any) -> None:
        changed(path, **config)
        save_file(tensors, file)
        with pytest.raises(ModelError, match=message):
            open_adapter(path, description)

    half = f"{GATE_UP}lora_B.weight"
    refused({k: v for k, v in good.items() if k != half}, "lora_B of .*gate_up_proj is missing")
    refused({**good, half: torch.full_like(good[half], float("nan"))}, "not finite")
    refused({**good, half: good[half][:, 3:].contiguous()}, "with rank 3 for 4 experts this model")
    refused({k: v for k, v in good.items() if not k.startswith(GATE_UP)}, "halves for 1 of its par")
    refused(good, r"names 1 of them \(down_proj\)", target_parameters=["experts.down_proj"])
    refused(good, "names 0 of them", target_parameters=None)
    refused(good, "names 'mlp.gate.weight', of which", target_parameters=["mlp.gate.weight",
            "experts.gate_up_proj", "down_proj"])  # fmt: skip
    refused(good, "r should be", r=0)
    one = {f"{DOWN}2.w1.lora_{half}.weight": torch.ones(*shape)
           for half, shape in (("A", (3, 64)), ("B", (48, 3)))}  # fmt: skip
    rest = {name: tensor for name, tensor in good.items() if "experts" not in name}
    old = {name.replace(".mlp.", ".block_sparse_moe."): tensor for name, tensor in one.items()}
    refused({**rest, **dict([*old.items()][:1])}, "2.w1 is missing", r=3, target_parameters=None)
    wrong = {name.replace("experts.2", "experts.4"): tensor for name, tensor in old.items()}
    refused({**rest, **wrong}, "experts.4.w1', which is no linear layer")
    save_file({**rest, **old}, file)
    found = [part.target for part in open_adapter(path, description).parts]
    assert ("model.layers.0.mlp.experts.2.gate_up_proj", 0, 48) in [
        (target.product, target.first, target.outputs) for target in found
    ]


def test_which_way_round_the_halves_of_experts_are(of_experts: Experts) -> None:
    """Files of older versions of PEFT have inputs and outputs of experts the other way round."""
    description, path, tensors = of_experts
    file = path / "adapter_model.safetensors"
    crossed = {
        **tensors,
        f"{DOWN}lora_A.weight": torch.ones(12, 64),
        f"{DOWN}lora_B.weight": torch.ones(48, 12),
    }
    for given, expected in ((tensors, False), (crossed, True)):
        save_file(given, file)
        parts = open_adapter(path, description).parts
        assert [p.is_crossed for p in parts if p.target.product.endswith("}.down_proj")] == [
            expected
        ]
    for version, inputs_first, expected in (
        ("0.18.1", False, True),
        ("0.18.1", True, False),
        ("0.19.0", False, True),
        ("0.20.0", False, False),
        ("1.0.0", True, False),
    ):
        settings = AdapterSettings(Fields({"peft_version": version}, "file"))
        assert settings.crosses_experts("experts", inputs_first=inputs_first) is expected
    with pytest.raises(ModelError, match=r"PEFT 0\.19 wrote the halves of experts either way"):
        AdapterSettings(Fields({"peft_version": "0.19.0"}, "file")).crosses_experts(
            "experts", inputs_first=True
        )
