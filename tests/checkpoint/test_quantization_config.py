"""What quantization_config says, and the tensors that should be there by it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import LLAMA, llama_tensors, safetensors_bytes

from loire.base.errors import CheckpointError, ModelError, UnsupportedModelError
from loire.checkpoint.families.registry import BY_MODEL_TYPE
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.quantization_config import QuantizationConfig, parse

DTYPES = {"int32": "I32", "int64": "I64", "int8": "I8", "float32": "F32", "float16": "F16",
          "uint8": "U8"}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}
FP8 = {"quant_algo": "FP8"}
MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
ROTATED = {"config_groups": {"R": {"apply": [{"location": "weight_input"}, {"location": "input"}]}}}
Q = "model.layers.0.self_attn.q_proj"


def of(section: Mapping[str, Any]) -> QuantizationConfig | None:
    return parse({"quantization_config": section}, "config.json")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "by bitsandbytes, in tables"),
        ({"quant_method": "aqlm"}, "by AQLM, as sums of entries of codebooks; Loire reads comp"),
        ({"quant_method": "hqq"}, "by HQQ, with zero points that are no whole"),
        ({"quant_method": "torchao"}, "by torchao, in tensors of its own kind"),
        ({"quant_method": "another"}, "by 'another'; Loire reads compressed-tensors, FP8"),
        ({"load_in_4bit": True}, "by bitsandbytes, in tables"),
        ({"bits": 4}, "quantized by 'unknown'"),
        ({**AWQ, "version": "gemv"}, "AWQ in 4 bits, version 'gemv', is not read"),
        ({**AWQ, "bits": 8}, "AWQ in 8 bits"),
        ({**GPTQ, "bits": 5}, "GPTQ in 5 bits, format 'gptq', is not read"),
        ({**GPTQ, "is_marlin_format": True}, "format 'marlin'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "format 'marlin'"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "by ModelOpt's 'NVFP4_AWQ'"),
        ({"quant_algo": "W4A16_AWQ"}, "by ModelOpt's 'W4A16_AWQ'"),
        ({**MIXED, "quantized_layers": {"a": FP8, "b": {"quant_algo": "W4A8_AWQ"}}}, "'W4A8_AWQ'"),
        ({**ROUND, "data_type": "mx_fp"}, "AutoRound in 'mx_fp', packed as"),
        ({**ROUND, "packing_format": "auto_round:exllamav2"}, "packed as 'auto_round:exllamav2'"),
        ({**PACKED, "transform_config": ROTATED}, "wants 'input' of modules rotated at each"),
        ({**PACKED, "format": "marlin-24"}, "'marlin-24' is not read"),
        ({**PACKED, "sparsity_config": {"format": "sparse-24"}}, "'sparse-24' is not read"),
    ],
)
def test_what_is_not_read_is_refused_with_a_sentence(section: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        of(section)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("gptq", "quantization_config should be an object"),
        ({"quant_method": 4}, "quant_method should be a string"),
        ({**GPTQ, "bits": "four"}, "bits should be a whole number from 1 to 8"),
        ({**GPTQ, "bits": 0}, "bits should be a whole number from 1 to 8"),
        ({**GPTQ, "group_size": -2}, "group_size should be a whole number from -1"),
        ({**GPTQ, "sym": "yes"}, "sym should be true or false"),
        ({**AWQ, "group_size": 2**40}, "group_size should be"),
        ({**GPTQ, "dynamic": [3]}, "dynamic should be an object"),
        ({**MIXED, "quantized_layers": 3}, "quantized_layers should be an object"),
        ({**MIXED, "quantized_layers": {"a": 3}}, "a should be an object"),
        ({**PACKED, "transform_config": {"config_groups": {"a": 3}}}, "config_groups should be"),
    ],
)
def test_nonsense_is_refused(section: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        of(section)


def test_what_is_said_is_read() -> None:
    assert parse({}, "config.json") is None
    assert of({"quant_method": None, "modules_to_not_convert": ["lm_head"]}) is None
    assert of({"quant_method": "fp8"}) == QuantizationConfig("fp8")
    assert of(GPTQ) == QuantizationConfig(
        "gptq", bits=4, group_size=32, symmetric=True, zero_offset=1
    )
    assert of({**AWQ, "group_size": -1}) == QuantizationConfig("awq", bits=4)
    nested = {"text_config": {"compression_config": PACKED}}
    assert parse(nested, "config.json") == QuantizationConfig("compressed-tensors")
    skipping = {**GPTQ, "dynamic": {"-:lm_head": {}}}
    assert of(skipping) == of(GPTQ)
    several = {**GPTQ, "dynamic": {"+:.*up": {"bits": 8}}}
    assert of(several) == QuantizationConfig("gptq", zero_offset=1)
    assert of(ROUND) == of(GPTQ)
    assert of({**ROUND, "packing_format": "auto_round:auto_awq"}) == of(AWQ)
    assert of({**MIXED, "quantized_layers": {"a": FP8}}) == QuantizationConfig("fp8")
    only_keys = {"quant_method": "modelopt", "quant_algo": None, "kv_cache_scheme": {}}
    assert of(only_keys) == QuantizationConfig("fp8")
    in_weights = {"config_groups": {"R": {"apply": [{"location": "weight_output"}]}}}
    assert of({**PACKED, "transform_config": in_weights}) == of(PACKED)
    with pytest.raises(UnsupportedModelError, match="by MLX, with minimums"):
        parse({"quantization": {"group_size": 64, "bits": 4}}, "config.json")


@pytest.mark.parametrize(
    ("family", "name", "common"),
    [
        (
            "granitemoehybrid",
            "shared_mlp.input_linear.weight_scale",
            "mlp.shared_expert.gate_up_pr",
        ),
        ("lfm2", "feed_forward.w1.weight_packed", "mlp.gate_proj.weight_packed"),
        ("mixtral", "block_sparse_moe.experts.3.w1.qweight", "mlp.experts.3.gate_proj.qweight"),
        ("nemotron_h", "mixer.in_proj.weight_scale", "mamba.in_proj.weight_scale"),
    ],
)
def test_parts_are_named_as_their_weights_are(family: str, name: str, common: str) -> None:
    found = BY_MODEL_TYPE[family].common_name(f"model.layers.0.{name}")
    assert found is not None
    assert found.startswith(f"model.layers.0.{common}")
    assert found.endswith(name.rpartition(".")[2])


def write(
    directory: Path, section: Mapping[str, Any], parts: Mapping[str, "np.ndarray[Any, Any]"]
) -> Path:
    """A Llama whose first query projection is these parts."""
    directory.mkdir(exist_ok=True)
    config = {**LLAMA, "hidden_size": 64, "quantization_config": section}
    (directory / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Any] = dict(llama_tensors(config))
    del tensors[f"{Q}.weight"]
    tensors |= {f"{Q}.{ending}": part for ending, part in parts.items()}
    header, body = {}, b""
    for name, tensor in tensors.items():
        end = len(body) + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), end],
        }
        body += tensor.tobytes()
    (directory / "model.safetensors").write_bytes(safetensors_bytes(header, body))
    return directory


def ints(*shape: int) -> "np.ndarray[Any, Any]":
    return np.zeros(shape, np.int32)


def halves(*shape: int) -> "np.ndarray[Any, Any]":
    return np.ones(shape, np.float16)


GPTQ_PARTS = {"qweight": ints(8, 64), "qzeros": ints(2, 8), "scales": halves(2, 64)}
AWQ_PARTS = {"qweight": ints(64, 8), "qzeros": ints(2, 8), "scales": halves(2, 64)}
PACKED_PARTS = {
    "weight_packed": ints(64, 8),
    "weight_scale": halves(64, 2),
    "weight_shape": np.array([64, 64]),
}
CODES = {"weight": np.zeros((64, 64), np.int8), "weight_scale": halves(64, 1)}


@pytest.mark.parametrize(
    ("section", "parts"),
    [(GPTQ, GPTQ_PARTS), (AWQ, AWQ_PARTS), (PACKED, PACKED_PARTS), (PACKED, CODES)],
)
def test_parts_become_one_weight(
    tmp_path: Path, section: dict[str, Any], parts: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "model", section, parts))
    info = checkpoint.tensors[f"{Q}.weight"]
    assert info.shape == (64, 64)
    assert info.is_quantized
    assert not any(name.startswith(f"{Q}.") and name != info.name for name in checkpoint.tensors)
    others = [other for name, other in checkpoint.tensors.items() if name != info.name]
    assert not any(other.is_quantized for other in others)


@pytest.mark.parametrize(
    ("section", "parts", "words"),
    [
        (GPTQ, {**GPTQ_PARTS, "scales": None}, r"q_proj.scales' is missing"),
        (GPTQ, {**GPTQ_PARTS, "qzeros": None}, r"q_proj.qzeros' is missing"),
        (GPTQ, {**GPTQ_PARTS, "scales": halves(3, 64)}, r"shape \(3, 64\), but should have \(2, 6"),
        (GPTQ, {**GPTQ_PARTS, "qzeros": ints(2, 7)}, r"shape \(2, 7\), but should have \(2, 8\)"),
        ({**GPTQ, "bits": 3}, GPTQ_PARTS, "has 8 words for each output, which hold no whole codes"),
        ({**GPTQ, "dynamic": {"+": 8}}, {**GPTQ_PARTS, "qzeros": ints(2, 7)}, "none in 2, 3, 4, 8"),
        (GPTQ, {**GPTQ_PARTS, "scales": ints(2, 64)}, "has dtype I32, but should have F32 or"),
        (GPTQ, {**GPTQ_PARTS, "qweight": ints(8)}, r"of a quantized matrix has the shape \(8,\)"),
        (GPTQ, {**GPTQ_PARTS, "g_idx": ints(63)}, r"g_idx' has the shape \(63,\)"),
        (GPTQ, {**GPTQ_PARTS, "g_idx": ints(64) + 2}, "input into group 2, but there are 2"),
        (GPTQ, {**GPTQ_PARTS, "g_idx": ints(64) - 1}, None),
        ({**GPTQ, "group_size": 48}, GPTQ_PARTS, None),
        (AWQ, {**AWQ_PARTS, "qweight": halves(64, 8)}, "has dtype F16, but should have I32"),
        (PACKED, {**PACKED_PARTS, "weight_shape": None}, "weight_shape' is missing"),
        (
            PACKED,
            {**PACKED_PARTS, "weight_shape": np.array([64, 99])},
            "no weight of 64 x 99",
        ),
        (
            PACKED,
            {**PACKED_PARTS, "weight_shape": np.array([64, -1])},
            "no weight of 64 x -1",
        ),
        (
            PACKED,
            {**PACKED_PARTS, "weight_shape": np.array([63, 64])},
            "no weight of 63 x 64",
        ),
        (PACKED, {**PACKED_PARTS, "weight_scale": halves(64, 3)}, "do not divide 64 inputs"),
        (PACKED, {**PACKED_PARTS, "weight_scale": halves(9, 2)}, "are no scales of 64 x 64"),
        (PACKED, {**PACKED_PARTS, "weight_zero_point": ints(7, 2)}, r"should have \(8, 2\)"),
        (
            PACKED,
            {**PACKED_PARTS, "weight_zero_point": np.zeros((8, 2), np.int8)},
            r"should have \(64, 2\)",
        ),
        (
            PACKED,
            {**PACKED_PARTS, "weight_packed": np.zeros((64, 32), np.uint8)},
            "should have U8 or F8_E8M0 or F8_E4M3",
        ),
        (PACKED, {**CODES, "weight_scale": None}, "weight_scale' is missing"),
        (PACKED, {**CODES, "weight_scale": halves(5, 1)}, r"shape \(5, 1\), but should have"),
        (GPTQ, {"weight": np.zeros((64, 64), np.int32)}, "has dtype I32; Loire reads F32"),
        ({}, CODES, "has dtype I8; Loire reads F32, F16, BF16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, section: dict[str, Any], parts: dict[str, Any], words: str | None
) -> None:
    given = {ending: part for ending, part in parts.items() if part is not None}
    directory = write(tmp_path / "model", section, given)
    if words is None:  # odd, but it says what it means
        open_checkpoint(directory)
        return
    with pytest.raises(ModelError, match=words):
        open_checkpoint(directory)
