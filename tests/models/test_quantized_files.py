"""Quantized weights of safetensors: the numbers that their own libraries read, and the same tokens
as a model of these numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from loire.api import LLM
from loire.base.errors import CheckpointError
from loire.base.sampling import SamplingParams
from loire.checkpoint.kept_blocks import stays_as_stored
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.weights import Cut, Matrix
from loire.kernels.native.backend import NativeBackend
from loire.kernels.select import select_backend
from loire.models.loading import load_decoder
from loire.models.tensors import TensorReader
from loire.planning.model_size import size_of_checkpoint
from support.quantized_models import (
    awq,
    fp4,
    fp8,
    gptq,
    modelopt,
    save_by_hand,
    save_compressed,
    save_plain,
)
from support.tiny_models import VOCAB_SIZE

NATIVE, _ = NativeBackend.available()
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
PER_TOKEN = {"symmetric": True, "strategy": "token", "dynamic": True}
COMPRESSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "W4A16 in groups of 128": (INT4, None, "W4_128"),
    "W4A16 in groups of 32": ({**INT4, "group_size": 32}, None, "W4Z_32"),
    "W4A16 asymmetric": ({**INT4, "symmetric": False}, None, "W4Z_128"),
    "W4A16 asymmetric, 64": ({**INT4, "symmetric": False, "group_size": 64}, None, "W4Z_32"),
    "W4A16 by channel": ({"num_bits": 4, "strategy": "channel"}, None, "W4_128"),
    "W8A16 in groups": ({**INT4, "num_bits": 8}, None, "W8_128"),
    "W8A16 asymmetric": ({**INT8, "symmetric": False}, None, "INT8"),
    "W3A16 in groups of 128": ({**INT4, "num_bits": 3}, None, "W4_128"),
    "W6A16 asymmetric": ({**INT4, "num_bits": 6, "symmetric": False}, None, "W8_128"),
    "W8A8": (INT8, {"num_bits": 8, "type": "int", **PER_TOKEN}, "W8_128"),
    "FP8 by tensor": (FP8, {"num_bits": 8, "type": "float", **PER_TOKEN}, "F8_128"),
    "FP8 by channel": ({**FP8, "strategy": "channel"}, None, "F8_128"),
    "FP8 in blocks": ({**FP8, "strategy": "block", "block_structure": [128, 128]}, None, "F8_128"),
}
MODELOPT = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO")
BY_HAND: dict[str, tuple[tuple[dict[str, Any], Any], str]] = {
    "GPTQ": (gptq(), "W4_128"),
    "GPTQ, no g_idx": (gptq(with_g_idx=False), "W4_128"),
    "GPTQ in groups of 32": (gptq(group_size=32), "W4Z_32"),
    "GPTQ by channel": (gptq(group_size=-1), "W4_128"),
    "GPTQ asymmetric": (gptq(symmetric=False), "W4Z_128"),
    "GPTQ, second version": (gptq(symmetric=False, version=2), "W4Z_128"),
    "GPTQ with act order": (gptq(order=True, group_size=32), "W4Z_32"),
    "GPTQ with act order, asymmetric": (gptq(order=True, group_size=64, symmetric=False), "W4Z_32"),
    "GPTQ with act order, eight bits": (gptq(order=True, bits=8), "W8_128"),
    "GPTQ in eight bits": (gptq(bits=8), "W8_128"),
    "GPTQ in eight bits, asymmetric": (gptq(bits=8, symmetric=False), "INT8"),
    "GPTQ in two bits": (gptq(bits=2, group_size=32), "W4Z_32"),
    "GPTQ in three bits": (gptq(bits=3), "W4_128"),
    "GPTQ in three bits with act order": (gptq(bits=3, order=True, symmetric=False), "W4Z_128"),
    "AWQ": (awq(), "W4Z_128"),
    "AWQ in groups of 64": (awq(group_size=64), "W4Z_32"),
    "AWQ by channel": (awq(group_size=-1), "W4Z_128"),
    "FP8 in blocks": (fp8((128, 128)), "F8_128"),
    "FP8 in blocks, exponents as scales": (
        fp8((128, 128), scales=torch.float8_e8m0fnu),
        "F8_128",
    ),
    "FP8 by tensor": (fp8(None), "F8_128"),
    "NVFP4": (fp4("nvfp4"), "NV4_128"),
    "NVFP4 by ModelOpt": (fp4("modelopt"), "NV4_128"),
    "MXFP4": (fp4("mxfp4"), "MXFP4"),
    **{f"ModelOpt {name}": (modelopt(name), "F8_128") for name in MODELOPT},
}
Saved = tuple[Path, dict[str, Tensor], str]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module", params=[*COMPRESSED, *(f"{name} by hand" for name in BY_HAND)])
def saved(
    request: pytest.FixtureRequest, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    directory = tmp_path_factory.mktemp("quantized")
    if request.param in COMPRESSED:
        weights, inputs, fmt = COMPRESSED[request.param]
        return directory, save_compressed(plain, directory, weights, inputs=inputs), fmt
    (config, quantize), fmt = BY_HAND[request.param.removesuffix(" by hand")]
    return directory, save_by_hand(plain, directory, config, quantize), fmt


def test_the_numbers_are_those_of_the_library(saved: Saved) -> None:
    directory, numbers, fmt = saved
    checkpoint = open_checkpoint(directory)
    reader = TensorReader(checkpoint.tensors)
    quantized = {name for name, info in checkpoint.tensors.items() if info.is_quantized}
    assert len(quantized) == 14
    assert {checkpoint.tensors[name].format.name for name in quantized} == {fmt}
    for name, info in checkpoint.tensors.items():
        found = reader.read(name, torch.float32)
        torch.testing.assert_close(found, numbers[name], rtol=0, atol=0)
        if info.format.block_elements > 1:
            kept = reader.read_blocks(name).values()
            torch.testing.assert_close(kept, numbers[name], rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(not NATIVE, reason="needs the native library")
def test_what_is_held_is_what_is_planned(saved: Saved) -> None:
    checkpoint = open_checkpoint(saved[0])
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    kernels = select_backend("native", cpu, dtype, 1)
    decoder = load_decoder(checkpoint, dtype=dtype, device=cpu, backend=kernels, max_model_len=64)
    planned = size_of_checkpoint(
        checkpoint, "x", dtype="bfloat16", quantization=None, kv_dtype="bfloat16", on_cpu=True
    )
    # (The head's rows are held in whole panels, which are more in so small a model.)
    held = decoder.bytes_per_step() - decoder.head.weight_bytes + 2 * VOCAB_SIZE * 128
    assert planned.step_weight_bytes == pytest.approx(held, rel=0.001)


def test_tokens_are_those_of_the_dequantized_model(saved: Saved, plain: Path) -> None:
    directory, numbers, _ = saved
    model = LlamaForCausalLM.from_pretrained(plain)
    model.load_state_dict(numbers)
    prompt = [5, 77, 130, 9]
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False
    )[0, len(prompt) :].tolist()
    params = SamplingParams(max_tokens=64, min_tokens=64, temperature=0.0)
    with LLM(str(directory), dtype="float32", num_threads=1, kv_cache_memory_bytes=2**24) as llm:
        [output] = llm.generate([{"prompt_token_ids": prompt}], params)
    assert list(output.outputs[0].token_ids) == wanted


def first_line(directory: Path, **options: Any) -> str:
    """What is said at start of what the weights are held in, in brackets."""
    with LLM(str(directory), num_threads=1, kv_cache_memory_bytes=2**22, **options) as llm:
        [_, said] = llm.engine.plan_lines[0].split("(", 1)
        return said.split(")", 1)[0]


def test_the_start_says_what_is_held_and_what_was_expanded(plain: Path, tmp_path: Path) -> None:
    expanded, kept = tmp_path / "expanded", tmp_path / "kept"
    save_by_hand(plain, expanded, *gptq(bits=8, symmetric=False))
    assert first_line(plain) == "bfloat16"
    assert first_line(expanded).startswith("INT8 expanded to bfloat16 8")
    save_by_hand(plain, kept, *gptq())
    said = first_line(kept, kernels="native" if NATIVE else "auto")
    form = "W4_128 in 4.2 bits" if NATIVE else "W4_128 expanded to bfloat16"
    assert said.startswith(form)
    assert said.endswith("%; bfloat16")
    assert first_line(kept, quantization="none").startswith("W4_128 expanded to bfloat16")


def test_nothing_is_rounded_a_second_time(plain: Path, tmp_path: Path) -> None:
    """Where it is expanded neither; but the head, which has 32 bits."""
    save_by_hand(plain, tmp_path, *fp8((128, 128)))
    said = first_line(tmp_path, quantization="int4")
    assert said.startswith("F8_128 ")
    assert "int8 in 8.0 bits" in said
    assert "int4" not in said
    assert "int4 in 4.5 bits" in first_line(plain, quantization="int4")


def test_where_inputs_may_be_in_another_order(plain: Path, tmp_path: Path) -> None:
    save_by_hand(plain, tmp_path, *gptq(order=True, group_size=32))
    tensors = open_checkpoint(tmp_path).tensors
    one = tensors["model.layers.0.mlp.gate_proj.weight"]
    assert one.quantized is not None
    assert one.quantized.order is not None
    other = replace(one, quantized=replace(one.quantized, order=b"another"))
    matrix = Matrix(name="x", rows=(64, 64), inputs=256)
    assert stays_as_stored(matrix, [one, other])
    assert stays_as_stored(replace(matrix, gated=True), [one, one])
    assert not stays_as_stored(replace(matrix, gated=True), [one, other])
    assert not stays_as_stored(replace(matrix, chunks=(128, 128)), [one])
    assert not stays_as_stored(replace(matrix, role="embedding"), [one])
    cut = Cut(rows=((0, 64),), inputs=(0, 128), whole_rows=(64,), whole_inputs=256)
    assert not stays_as_stored(replace(matrix, cut=cut), [one])
    assert stays_as_stored(replace(matrix, cut=replace(cut, inputs=(0, 256))), [one])


def test_what_older_and_other_files_say_beside_their_weights(plain: Path, tmp_path: Path) -> None:
    """The same weights: a file beside config.json, AutoRound's words, rules for some modules, and
    biases of zero that the model does not have."""

    def numbers(name: str, config: dict[str, Any], quantize: Any, **beside: Any) -> None:
        directory = tmp_path / name
        expected = save_by_hand(plain, directory, config, quantize)
        if beside:
            settings = json.loads((directory / "config.json").read_text())
            del settings["quantization_config"]
            (directory / "config.json").write_text(json.dumps(settings))
            for file, content in beside.items():
                (directory / f"{file}.json").write_text(json.dumps(content))
        path = directory / "model.safetensors"
        bias = {"model.layers.0.self_attn.o_proj.bias": torch.zeros(128)}
        save_file(load_file(path) | bias, path)
        tensors = open_checkpoint(directory).tensors
        reader = TensorReader(tensors)
        assert tensors.keys() == expected.keys()
        for key, wanted in expected.items():
            assert torch.equal(reader.read(key, torch.float32), wanted)

    said, by_gptq = gptq(symmetric=False)
    old = {"bits": 4, "group_size": 128, "sym": False, "desc_act": False}
    numbers("old_gptq", said, by_gptq, quantize_config=old)
    numbers("dynamic", {**said, "dynamic": {"+:.*up.*": {"bits": 8}}}, by_gptq)
    round_by = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", **old}
    numbers("auto_round", round_by, by_gptq)
    numbers("auto_round_mixed", {**round_by, "extra_config": {"x": {"bits": 8}}}, by_gptq)
    said, by_awq = awq()
    old = {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}
    numbers("old_awq", said, by_awq, quant_config=old)
    said, by_modelopt = modelopt()
    inner = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    old = {"producer": {"name": "modelopt"}, "quantization": inner}
    numbers("old_modelopt", said, by_modelopt, hf_quant_config=old)


def test_zero_points_by_themselves(plain: Path, tmp_path: Path) -> None:
    """As compressed-tensors stored them until 2025."""
    weights = {**INT4, "symmetric": False}
    expected = save_compressed(plain, tmp_path, weights)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name, packed in tensors.items():
        if name.endswith("weight_zero_point"):
            codes = (packed[:, None] >> torch.arange(0, 32, 4)[:, None] & 15).flatten(0, 1)
            rows = len(tensors[name.replace("zero_point", "scale")])
            tensors[name] = (codes[:rows] - 8).to(torch.int8)
    save_file(tensors, path)
    opened = open_checkpoint(tmp_path).tensors
    for name, wanted in expected.items():
        assert torch.equal(TensorReader(opened).read(name, torch.float32), wanted)
    tensors["model.layers.0.mlp.up_proj.weight_zero_point"][0, 0] = 8
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="zero points that no code of 4 bits has"):
        first_line(tmp_path)


@pytest.mark.skipif(not NATIVE, reason="needs the native library")
def test_fp8_that_is_no_number_is_refused(plain: Path, tmp_path: Path) -> None:
    save_by_hand(plain, tmp_path, *fp8((128, 128)))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 3] = float("nan")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight' holds numbers that"):
        first_line(tmp_path, kernels="native")


@pytest.mark.parametrize(
    ("ending", "value", "words"),
    [
        ("scales", float("inf"), "scales that are not finite"),
        ("scales", float("nan"), "scales that are not finite"),
        ("qzeros", 0x11111111, "zero points other than 8, but config.json says"),
        ("scales", 0.0, None),
    ],
)
def test_wrong_numbers_are_refused_in_a_sentence(
    plain: Path, tmp_path: Path, ending: str, value: float, words: str | None
) -> None:
    save_by_hand(plain, tmp_path, *gptq())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"model.layers.1.mlp.up_proj.{ending}"][0, 3] = value
    save_file(tensors, path)
    if words is None:  # scales of zero are numbers
        first_line(tmp_path)
        return
    with pytest.raises(CheckpointError, match=f"layers.1.mlp.up_proj.{ending}' holds {words}"):
        first_line(tmp_path)
