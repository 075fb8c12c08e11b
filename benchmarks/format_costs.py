"""What the engine's own rounding costs a model in each format of weights, in nats per token.

    python benchmarks/format_costs.py --ggml libggml-base.so [--formats Q4_K,W4_128] [--chunks 16]

SmolLM2 is written in each format: by ggml's own rounding (benchmarks/ggml.py) into GGUF files, into
safetensors as compressed-tensors lays them out, and in Loire's palettes as `loire quantize` does,
but each number rounded for itself; columns count by their inputs' squares in another text. Its
width of 576 fills no blocks of 128 or 256, so that it is widened to 768 and 12 heads first, with
zeros: the same function. Of each file three things are compared on the same tokens: everything in
float32; bfloat16 with the weights expanded to it; and bfloat16 with the file's own bits, for which
activations are rounded to eight bits (but those for FP8). Of each two is shown how much more
surprised a token is in the mean, and the divergence of the distributions (Kullback-Leibler):
rounding adds that in the mean over texts, as it favours no token, but with much less chance in it.
In nats, with standard errors; JSON last. The limit is 0.005 nats per token.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import ggml
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from loire.base.config import WeightQuantization
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.formats import LEVEL_ROWS
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.saved_description import MODEL_TYPE, VERSION, written
from loire.checkpoint.store import resolve_model
from loire.checkpoint.weights import matrices
from loire.execution.whole_texts import WholeTexts
from loire.kernels.block_formats import StoredTensor
from loire.kernels.select import select_backend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder
from loire.quantize.calibration import read_text
from loire.quantize.layer_run import CalibrationRun, Moments
from loire.quantize.levels import LEVELS, Levels
from loire.quantize.rounding import round_to_nearest
from loire.quantize.save import write_piece
from loire.text.tokenizer import checkpoint_tokenizer, load_tokenizer
from loire.workloads.perplexity import Chunk, cut, text_tokens

CONTEXT = 512
HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INTERMEDIATE = 768, 12, 4, 64, 1536
GGUF = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL",
        "IQ4_XS", "MXFP4", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS")  # fmt: skip
COMPRESSED: dict[str, dict[str, Any]] = {
    "W4_128": {"num_bits": 4, "group_size": 128, "symmetric": True},
    "W4Z_128": {"num_bits": 4, "group_size": 128, "symmetric": False},
    "W4Z_32": {"num_bits": 4, "group_size": 32, "symmetric": False},
    "W8_128": {"num_bits": 8, "group_size": 128, "symmetric": True},
    "F8_128": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    "NV4_128": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
}
"""By the format that Loire keeps them in."""
PALETTES = {x.name: x for x in LEVELS if x.format.num_levels}
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"quantization": "none", "dtype": torch.float32},
    "bfloat16": {"quantization": "none", "dtype": torch.bfloat16},
    "kept": {"quantization": "auto", "dtype": torch.bfloat16},
}
PAIRS = {
    "bfloat16": ("bfloat16", "float32"),
    "kept": ("kept", "float32"),
    "rounding": ("kept", "bfloat16"),
}
CPU = torch.device("cpu")
Numbers = dict[str, NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--ggml", type=Path, required=True, help="libggml-base.so")
    parser.add_argument("--formats", default=",".join([*GGUF, *COMPRESSED, *PALETTES]))
    parser.add_argument("--text", type=Path, nargs="*", help="files [this project's documents]")
    parser.add_argument("--chunks", type=int, default=16, help=f"of {CONTEXT} tokens")
    args = parser.parse_args()
    root = Path(__file__).parent.parent
    paths = args.text or [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    text = "\n\n".join(path.read_text() for path in paths)
    source = resolve_model("smollm2")
    reader = gguf.GGUFReader(source)
    wide = widened(reader)
    quantizer = ggml.Quantizer(args.ggml)
    importance = importances(wide, source)
    results: dict[str, dict[str, float]] = {}
    columns = ("bfloat16 over float32", "kept bits over float32", "rounding alone")
    print(f"{'':<8} {'float32':>8}" + "".join(f"  {column:>37}" for column in columns))
    for name in args.formats.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if name in COMPRESSED or name in PALETTES:
                path = Path(folder)
                write_directory(path, wide, source, COMPRESSED.get(name))
                if name in PALETTES:
                    round_to_palette(path, PALETTES[name], importance)
            else:
                path = Path(folder) / f"{name}.gguf"
                write_gguf(path, reader, wide, Type[name], quantizer, importance)
            results[name] = compare(name, path, text, args.chunks)
    print(json.dumps(results))


def compare(name: str, path: Path, text: str, most_chunks: int) -> dict[str, float]:
    """What a token loses in float32, and for each of PAIRS what it loses more, and the divergence
    of the two distributions: means and their standard errors."""
    checkpoint = open_checkpoint(path)
    decoders = {way: load(checkpoint, **options) for way, options in WAYS.items()}
    token_ids, begins = text_tokens(checkpoint_tokenizer(checkpoint), text)
    losses: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    divergences: dict[str, list[torch.Tensor]] = {label: [] for label in PAIRS}
    for chunk in cut(token_ids, context=CONTEXT, begins=begins)[:most_chunks]:
        truth = torch.tensor(chunk.token_ids[chunk.first_counted :])[:, None]
        found = {way: log_probabilities(decoders[way], chunk) for way in WAYS}
        for way, each in found.items():
            losses[way].append(-each.gather(1, truth)[:, 0])
        for label, (way, other) in PAIRS.items():
            p, q = found[other], found[way]
            divergences[label].append((p.exp() * (p - q)).sum(dim=1))
    lost = {way: torch.cat(each) for way, each in losses.items()}
    result = {"tokens": float(len(lost["float32"])), "float32": float(lost["float32"].mean())}
    shown = f"{name:<8} {result['float32']:8.4f}"
    for label, (way, other) in PAIRS.items():
        added, added_error = mean(lost[way] - lost[other])
        apart, error = mean(torch.cat(divergences[label]))
        result |= {f"{label}_added": added, f"{label}_added_error": added_error}
        result |= {f"{label}_divergence": apart, f"{label}_divergence_error": error}
        shown += f"  {added:+8.4f} ± {added_error:.4f}, {apart:.5f} ± {error:.5f}"
    print(shown, flush=True)
    return result


def load(checkpoint: Checkpoint, dtype: torch.dtype, quantization: WeightQuantization) -> Decoder:
    """By native kernels."""
    return load_decoder(
        checkpoint,
        dtype=dtype,
        device=CPU,
        backend=select_backend("native", CPU, dtype),
        max_model_len=CONTEXT,
        quantization=quantization,
    )


@torch.inference_mode()
def log_probabilities(decoder: Decoder, chunk: Chunk) -> torch.Tensor:
    """float32 [T, V]: before each of the tokens that count."""
    whole = WholeTexts(decoder.description, decoder.backend, [chunk.token_ids])
    caches = whole.caches(decoder.head.dtype)
    states = decoder.forward(whole.token_ids, whole.batches, whole.plans, caches)
    return decoder.logits(states[chunk.first_counted - 1 : -1]).log_softmax(dim=1)


def mean(values: torch.Tensor) -> tuple[float, float]:
    """And its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def widened(reader: gguf.GGUFReader) -> Numbers:
    """SmolLM2's matrices and norms in float32, wider by zeros, to the same effect.

    What is added to the stream stays zero; norms take a mean over more, which their weights and
    epsilon make up for; heads that are added see zeros and are multiplied by zeros.
    """
    attention = HEADS * HEAD_SIZE
    shapes = {
        "attn_q": (attention, HIDDEN), "attn_k": (KV_HEADS * HEAD_SIZE, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_SIZE, HIDDEN), "attn_output": (HIDDEN, attention),
        "ffn_gate": (INTERMEDIATE, HIDDEN), "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }  # fmt: skip
    found: Numbers = {}
    for tensor in reader.tensors:
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if values.ndim == 1:
            wide = np.zeros(HIDDEN, dtype=np.float32)
            wide[: len(values)] = values * math.sqrt(len(values) / HIDDEN)
        else:
            wide = np.zeros(shapes.get(part, (len(values), HIDDEN)), dtype=np.float32)
            wide[: values.shape[0], : values.shape[1]] = values
        found[tensor.name] = wide
    return found


def importances(wide: Numbers, source: Path) -> Numbers:
    """Mean squares of the inputs of the layers' matrices, by their names in Hugging Face's files,
    in the beginning of `loire quantize`'s text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_directory(path, wide, source, None)
        checkpoint = open_checkpoint(path)
        token_ids, _ = text_tokens(checkpoint_tokenizer(checkpoint), read_text(None))
        run = CalibrationRun(checkpoint, [token_ids[:CONTEXT]])
        stream, moments = run.embed(run.matrix(run.weights.embedding)), Moments()
        found: Numbers = {}
        for index, layer in enumerate(run.weights.layers):
            [stream] = run.layer(index, run.layer_tensors(index), [stream], moments)
            for matrix in matrices(layer):
                squares = moments.mean(matrix.name, matrix.inputs).diagonal().numpy()
                for name in matrix.stored_weights(checkpoint.tensors):
                    found[name] = squares
        return found


def write_gguf(
    path: Path,
    reader: gguf.GGUFReader,
    wide: Numbers,
    to: Type,
    quantizer: ggml.Quantizer,
    importance: Numbers,
) -> None:
    """All layers' matrices in one type; the embedding, which is the head, in Q8_0 as it was."""
    fields = ggml.read_fields(reader)

    def replace(key: str, value: Any) -> None:
        fields[key] = (value, *fields[key][1:])

    old = fields["llama.embedding_length"][0]
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    replace(epsilon, fields[epsilon][0] * old / HIDDEN)
    replace("llama.embedding_length", HIDDEN)
    replace("llama.attention.head_count", HEADS)
    replace("llama.attention.head_count_kv", KV_HEADS)

    def tensor(name: str, values: NDArray[np.float32]) -> ggml.Tensor:
        if values.ndim == 1:
            return ggml.Tensor(name, Type.F32, values.shape, lambda: values)
        kind = to if name.startswith("blk.") else Type.Q8_0
        given = importance.get(_hub_name(name))
        return ggml.Tensor(name, kind, values.shape, lambda: quantizer.blocks(values, kind, given))

    ggml.write(path, fields, [tensor(name, values) for name, values in wide.items()])


def write_directory(path: Path, wide: Numbers, source: Path, scheme: dict[str, Any] | None) -> None:
    """A Hugging Face directory; with a scheme, the layers' matrices are as compressed-tensors packs
    them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, values in wide.items():
        hub_name, tensor = _hub_name(name), torch.from_numpy(values)
        if ".attn_q." in name or ".attn_k." in name:
            # Pairs that are rotated together are neighbours in GGUF, half a head apart here.
            halves = tensor.view(-1, HEAD_SIZE // 2, 2, HIDDEN)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if tensor.ndim == 1 or not name.startswith("blk.") or scheme is None:
            tensors[hub_name] = tensor
            continue
        module = hub_name.removesuffix(".weight")
        for ending, part in _compressed(tensor, scheme).items():
            tensors[f"{module}.{ending}"] = part
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    old = gguf.GGUFReader(source).fields["llama.embedding_length"].contents()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": sum(name.endswith("attn_norm.weight") for name in wide),
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_SIZE,
        "intermediate_size": INTERMEDIATE, "vocab_size": len(wide["token_embd.weight"]),
        "rms_norm_eps": 1e-5 * old / HIDDEN, "rope_theta": 100000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "max_position_embeddings": 8192, "bos_token_id": 1,
        "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    if scheme is not None:
        config["quantization_config"] = _as_compressed(scheme)
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(open_checkpoint(source).tokenizer)
    tokenizer.rust.save(str(path / "tokenizer.json"))


def _as_compressed(scheme: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of it."""
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[scheme.get("type", "int"), scheme["num_bits"] == 4],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"type": "int", "strategy": "group", **scheme},
            }
        },
        "ignore": ["lm_head"],
    }


def round_to_palette(path: Path, levels: Levels, importance: Numbers) -> None:
    """Make a directory one of Loire's own, the layers' matrices in blocks of that format."""
    description = open_checkpoint(path).description
    piece: dict[str, torch.Tensor | StoredTensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        piece[name] = tensor
        if tensor.ndim == 2 and ".layers." in name:
            piece[name] = round_to_nearest(tensor, torch.from_numpy(importance[name]), levels)
    write_piece(path / "model.safetensors", piece)
    formats = {name: levels.format.name for name, x in piece.items() if isinstance(x, StoredTensor)}
    config = {
        "model_type": MODEL_TYPE,
        "version": VERSION,
        "formats": formats,
        "level_rows": dict.fromkeys(formats, LEVEL_ROWS) if levels.fitted else {},
    }
    (path / "config.json").write_text(json.dumps({**config, "description": written(description)}))


_FORMATS = {
    ("int", False): "pack-quantized",
    ("int", True): "pack-quantized",
    ("float", False): "float-quantized",
    ("float", True): "nvfp4-pack-quantized",
}


def _compressed(weight: torch.Tensor, scheme: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a matrix, by the ends of their names."""
    if scheme.get("type") != "float":
        return _packed(weight, **scheme)
    return _float8(weight) if scheme["num_bits"] == 8 else _float4(weight)


def _float8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix in FP8 (e4m3), with a scale for each output."""
    scales = (weight.abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-8)
    return {"weight": (weight / scales).to(torch.float8_e4m3fn), "weight_scale": scales}


def _float4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix in NVFP4: each 16 with a scale in FP8, of which the largest of all is 448."""
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    groups = weight.unflatten(1, (-1, 16))
    most = groups.abs().amax(dim=2) / 6
    factor = 448 / most.max()
    stored = (most * factor).to(torch.float8_e4m3fn)
    scales = (stored.float() / factor).clamp(min=1e-30)
    levels = torch.bucketize(groups.abs() / scales[..., None], (values[1:] + values[:-1]) / 2)
    codes = (levels + 8 * (groups < 0)).to(torch.uint8).flatten(1)
    return {
        "weight_packed": codes[:, ::2] | codes[:, 1::2] << 4,
        "weight_scale": stored,
        "weight_global_scale": factor[None],
    }


def _packed(
    weight: torch.Tensor, *, num_bits: int, group_size: int, symmetric: bool
) -> dict[str, torch.Tensor]:
    """Codes of a matrix in words, each rounded to the nearest of its group's levels."""
    rows, columns = weight.shape
    groups = weight.view(rows, -1, group_size)
    middle = 1 << num_bits - 1
    most = 2 * middle - 1
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    if symmetric:
        scales = torch.maximum(high, -low) / (middle - 1)
        zeros = torch.full_like(scales, middle)
    else:
        scales = (high - low) / most
        zeros = (-low / scales).nan_to_num().round()
    scales = scales.clamp(min=1e-8).bfloat16().float()
    codes = (groups / scales[..., None]).round() + zeros[..., None]
    codes = codes.clamp(0, most).to(torch.int64).view(rows, columns)
    found = {
        "weight_packed": _words(codes, num_bits),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        found["weight_zero_point"] = _words(zeros.to(torch.int64).T, num_bits).T.contiguous()
    return found


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes int64 [n, m] in int32 [n, m * bits / 32], the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    words = (codes.reshape(len(codes), -1, 32 // bits) << shifts).sum(2)
    return words.to(torch.int32)


def _hub_name(name: str) -> str:
    """What a tensor of llama.cpp's files is called in Hugging Face directories."""
    parts = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }  # fmt: skip
    *block, part, _ = name.split(".")
    return (f"model.layers.{block[1]}." if block else "") + f"{parts[part]}.weight"


if __name__ == "__main__":
    main()
