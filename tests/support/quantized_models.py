"""Tiny models with quantized weights in safetensors: by compressed-tensors' own library, and by
hand from the specifications of the others. Each comes with the numbers that its weights stand
for."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny_models import VOCAB_SIZE, save_tokenizer

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_plain(directory: Path, *, seed: int = 0) -> Path:
    """A Llama whose rows hold whole groups of 128."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=2,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_compressed(
    plain: Path,
    directory: Path,
    weights: Mapping[str, Any],
    *,
    inputs: Mapping[str, Any] | None = None,
    ignore: tuple[str, ...] = ("lm_head",),
) -> dict[str, Tensor]:
    """By compressed-tensors. The numbers of all weights, by the library's own reading."""
    if sys.version_info < (3, 11):
        pytest.skip("compressed-tensors needs Python 3.11")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = LlamaForCausalLM.from_pretrained(plain)
    arguments = QuantizationArgs(**weights)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=arguments,
        input_activations=None if inputs is None else QuantizationArgs(**inputs),
    )
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=list(ignore))
    apply_quantization_config(model, config, show_progress=False)
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        weight = module.weight.data
        shape = module.weight_scale.shape
        if arguments.strategy == "block":
            high, wide = arguments.block_structure
            weight = F.pad(weight, (0, -weight.shape[1] % wide, 0, -weight.shape[0] % high))
            grouped = weight.unflatten(1, (-1, wide)).unflatten(0, (-1, high)).transpose(1, 2)
            grouped = grouped.flatten(2)
        elif arguments.strategy == "tensor":
            grouped = weight.flatten()[None]
        else:
            grouped = weight.unflatten(1, (shape[-1], -1))
        low, high_ = grouped.amin(dim=-1), grouped.amax(dim=-1)
        scale, zero = calculate_qparams(low, high_, arguments)
        module.weight_scale.data = scale.reshape(shape)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape)
        assert name not in ignore
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(directory)
    compressor.update_config(str(directory))
    save_tokenizer(directory)
    compressor.decompress_model(model)
    numbers = model.state_dict()
    return {name: value.float() for name, value in numbers.items() if name.endswith(".weight")}


def save_by_hand(
    plain: Path, directory: Path, config: Mapping[str, Any], quantize: Any
) -> dict[str, Tensor]:
    """Projections as quantize(weight) -> (tensors by ending, numbers) says; the rest as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.loads((plain / "config.json").read_text())
    settings["quantization_config"] = dict(config)
    (directory / "config.json").write_text(json.dumps(settings))
    stored: dict[str, Tensor] = {}
    numbers: dict[str, Tensor] = {}
    for name, value in load_file(plain / "model.safetensors").items():
        base = name.removesuffix(".weight")
        if base.endswith(PROJECTIONS):
            tensors, numbers[name] = quantize(value)
            stored |= {f"{base}.{ending}": made.contiguous() for ending, made in tensors.items()}
        else:
            stored[name] = numbers[name] = value
    save_file(stored, directory / "model.safetensors")
    save_tokenizer(directory)
    return numbers


def rounded_in_groups(
    weight: Tensor, bits: int, groups: Tensor, *, symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int32 [in, out], scales float16 [groups, out] and zero points int32 [groups, out]. The
    first output has no negative numbers, the second none else: zero points 0 and the largest."""
    given, top = weight.T.clone(), (1 << bits) - 1
    given[:, 0].abs_()
    given[:, 1].abs_().neg_()
    codes = torch.empty(given.shape, dtype=torch.int32)
    scales, zeros = [], []
    for group in range(int(groups.max()) + 1):
        own = given[groups == group]
        low, high = own.amin(dim=0).clamp(max=0), own.amax(dim=0).clamp(min=0)
        if symmetric:
            scale = (own.abs().amax(dim=0) * 2 / top).half()
            zero = torch.full(scale.shape, 1 << (bits - 1))
        else:
            scale = ((high - low) / top).half()
            zero = (-low / scale.float()).round().clamp(0, top)
        codes[groups == group] = (own / scale.float() + zero).round().clamp(0, top).int()
        scales.append(scale)
        zeros.append(zero.int())
    return codes, torch.stack(scales), torch.stack(zeros)


def in_words(codes: Tensor, bits: int, dim: int) -> Tensor:
    """Codes in words of 32 bits, the first one lowest, without gaps: int32."""
    groups = codes.long().unflatten(dim, (-1, 32)).movedim(dim + 1, -1)
    ones = (groups[..., None] >> torch.arange(bits) & 1).flatten(-2).unflatten(-1, (bits, 32))
    words = (ones << torch.arange(32)).sum(dim=-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    return words.movedim(-1, dim + 1).flatten(dim, dim + 1)


def gptq(
    bits: int = 4,
    group_size: int = 128,
    *,
    symmetric: bool = True,
    order: bool = False,
    with_g_idx: bool = True,
    version: int = 1,
) -> tuple[dict[str, Any], Any]:
    """A configuration, and how a weight is quantized by it."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        groups = torch.arange(inputs) // (group_size if group_size > 0 else inputs)
        if order:
            groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
        codes, scales, zeros = rounded_in_groups(weight, bits, groups, symmetric=symmetric)
        numbers = (codes - zeros[groups]).float() * scales[groups].float()
        stored = zeros - 1 if version == 1 else zeros
        tensors = {
            "qweight": in_words(codes, bits, 0),
            "qzeros": in_words(stored, bits, 1),
            "scales": scales,
        }
        if with_g_idx:
            tensors["g_idx"] = groups.int()
        return tensors, numbers.T.contiguous()

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": order,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return config, quantize


def awq(group_size: int = 128) -> tuple[dict[str, Any], Any]:
    """The same for AWQ's "gemm"."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which output each four bits of a word hold

    def shuffled(codes: Tensor) -> Tensor:
        return in_words(codes.unflatten(1, (-1, 8))[:, :, order].flatten(1), 4, 1)

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = weight.shape[1]
        groups = torch.arange(inputs) // (group_size if group_size > 0 else inputs)
        codes, scales, zeros = rounded_in_groups(weight, 4, groups, symmetric=False)
        numbers = (codes - zeros[groups]).float() * scales[groups].float()
        tensors = {"qweight": shuffled(codes), "qzeros": shuffled(zeros), "scales": scales}
        return tensors, numbers.T.contiguous()

    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    return config, quantize


def fp8(
    block: tuple[int, int] | None, *, scales: torch.dtype = torch.float32
) -> tuple[dict[str, Any], Any]:
    """FP8 in blocks as DeepSeek's and Qwen's files have it, or with one scale for all."""

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        high, wide = block or weight.shape
        rows, columns = -(-weight.shape[0] // high), -(-weight.shape[1] // wide)
        stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        numbers = torch.empty(weight.shape)
        inverse = torch.empty(rows, columns)
        for i in range(rows):
            for j in range(columns):
                place = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                scale = (weight[place].abs().max() / 448).to(scales).float()
                stored[place] = (weight[place] / scale).clamp(-448, 448).to(stored.dtype)
                numbers[place] = stored[place].float() * scale
                inverse[i, j] = scale
        name = "weight_scale_inv" if block else "weight_scale"
        given = inverse if block else inverse.reshape(())
        return {"weight": stored, name: given.to(scales)}, numbers

    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if block is not None:
        config |= {"fmt": "e4m3", "weight_block_size": list(block)}
    return config, quantize


def modelopt(algorithm: str = "FP8") -> tuple[dict[str, Any], Any]:
    """The same as NVIDIA's ModelOpt exports it: scales of inputs, keys and values included."""
    in_blocks = algorithm == "FP8_PB_WO"
    _, quantize_all = fp8((128, 128) if in_blocks else None)

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
            scale = weight.abs().amax(dim=1) / 448
            stored = (weight / scale[:, None]).to(torch.float8_e4m3fn)
            numbers = stored.float() * scale[:, None]
            return {"weight": stored, "weight_scale": scale}, numbers
        tensors, numbers = quantize_all(weight)
        if in_blocks:
            scale = tensors.pop("weight_scale_inv")
            return tensors | {"weight_scale": scale[:, None, :, None]}, numbers
        scales = {name: torch.tensor(0.5) for name in ("input_scale", "k_scale", "v_scale")}
        return tensors | scales, numbers

    config = {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "modelopt", "version": "0.39.0"},
    }
    return config, quantize


def fp4(by: str) -> tuple[dict[str, Any], Any]:
    """The same in FP4: "nvfp4" and "mxfp4" as compressed-tensors has them, "modelopt"'s NVFP4."""
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([values, -values])

    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        grouped = weight.unflatten(1, (-1, 32 if by == "mxfp4" else 16))
        scales = grouped.abs().amax(dim=-1) / 6
        factor = scales.max() / 448
        if by == "mxfp4":
            exponents = scales.log2().ceil() + 127
            found = {"weight_scale": exponents.to(torch.uint8)}
            scales = torch.exp2(exponents - 127)
        else:
            stored = (scales / factor).to(torch.float8_e4m3fn)
            found = {"weight_scale": stored}
            if by == "modelopt":
                found |= {"weight_scale_2": factor, "input_scale": torch.tensor(0.5)}
                scales = stored.float() * factor
            else:
                found |= {"weight_global_scale": 1 / factor[None]}
                scales = stored.float() / (1 / factor)
        codes = (grouped[..., None] / scales[..., None, None] - values).abs().argmin(dim=-1)
        numbers = (values[codes] * scales[..., None]).flatten(1)
        pairs = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2))
        name = "weight" if by == "modelopt" else "weight_packed"
        return found | {name: pairs[..., 0] | pairs[..., 1] << 4}, numbers

    if by == "modelopt":
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, quantize
    return {"quant_method": "compressed-tensors", "format": f"{by}-pack-quantized"}, quantize
