"""Files of standard types: what they hold is what was chosen, in the order that the file has it."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from checkpoint.checkpoint_files import LLAMA, gguf_name, llama_tensors, write_gguf
from loire import LLM, SamplingParams
from loire.base.errors import UnsupportedModelError
from loire.checkpoint.checkpoint import Checkpoint, TokenizerSource
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.weights import Vector, each, matrices
from loire.models.tensors import TensorReader
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.pre_tokenizers import PRE_TOKENIZERS
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer, load_tokenizer
from support.tiny_models import SPECIAL, VOCAB_SIZE, save_tiny_llama, save_tokenizer

CONFIG = LLAMA | {
    "vocab_size": 259, "hidden_size": 256, "intermediate_size": 288, "max_position_embeddings": 512
}  # fmt: skip

SETTINGS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE + 6,  # two more than there are tokens
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
TEXT = read_text(None)[:1200]
PARAMS = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


def test_the_file_has_the_weights_in_standard_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {name: tensor.shape for name, tensor in llama_tensors(CONFIG).items()}
    tensors = {
        gguf_name(name): (rng.normal(size=shape) * (0.05 if len(shape) > 1 else 1)).astype("<f4")
        for name, shape in shapes.items()
    }
    source = write_gguf(tmp_path / "source.gguf", config=CONFIG, tensors=tensors)
    before, out = open_checkpoint(source), tmp_path / "out.gguf"
    plain = open_checkpoint(save_tiny_llama(tmp_path / "plain"))
    tokenizer = checkpoint_tokenizer(plain)
    kept = tmp_path / "kept"
    report = quantize(before, tokenizer, TEXT, out, 4.0, file_format="gguf", kept=kept)
    assert report.bits <= 4.0
    after = open_checkpoint(out)
    assert after.description == before.description
    assert {name: after.tensors[name].format.name for name in report.formats} == report.formats
    # 288 inputs are no whole blocks of 256.
    assert len({"Q3_K", "IQ4_XS"} & set(report.formats.values())) > 0
    assert report.formats["model.layers.0.mlp.down_proj.weight"] in ("IQ4_NL", "Q5_0", "Q8_0")
    old, new = TensorReader(before.tensors), TensorReader(after.tensors)
    for name in before.tensors:
        was, now = old.read(name, torch.float32), new.read(name, torch.float32)
        assert float((now - was).norm() / was.norm()) < 0.35, name
        assert name in report.formats or torch.equal(now, was)
    read = gguf.GGUFReader(out)
    for tensor in read.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert numbers.shape == tensors[tensor.name].shape
        assert np.abs(numbers - tensors[tensor.name]).mean() < 0.02, tensor.name
    assert read.fields["loire.made_from"].contents() == "source.gguf"
    assert not out.with_name("out.gguf.partial").exists()


def test_experts_are_put_together_again(tmp_path: Path) -> None:
    """And with eight bits for every weight the file has what a directory has."""
    rng = np.random.default_rng(1)
    config = CONFIG | {"hidden_size": 64, "intermediate_size": 96}
    shapes = {gguf_name(name): tensor.shape for name, tensor in llama_tensors(config).items()}
    for layer in range(config["num_hidden_layers"]):
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (4, 64)
        for part in ("gate", "up", "down"):
            shape = shapes.pop(f"blk.{layer}.ffn_{part}.weight")
            shapes[f"blk.{layer}.ffn_{part}_exps.weight"] = (4, *shape)
    tensors = {
        name: (rng.normal(size=shape) / (8 if len(shape) > 1 else 1)).astype("<f4")
        for name, shape in shapes.items()
    }
    keys = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    source = write_gguf(tmp_path / "in.gguf", config=config, tensors=tensors, extra=keys)
    save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(TokenizerSource(tokenizer_json=tmp_path / "tokenizer.json"))
    as_file, as_directory = both(open_checkpoint(source), tokenizer, tmp_path)
    assert as_file.description == as_directory.description
    assert_same_weights(as_file, as_directory)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(as_file.path).tensors}
    assert read.keys() == tensors.keys()
    experts = read["blk.1.ffn_down_exps.weight"]
    numbers = gguf.dequantize(experts.data, experts.tensor_type)
    assert np.abs(numbers - tensors[experts.name]).mean() < 0.02


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_file_is_made_of_a_directory(family: str, tmp_path: Path) -> None:
    """It says the same, cuts texts in the same way and gives the same tokens."""
    if family == "llama":
        rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 128}  # fmt: skip
        config: Any = LlamaConfig(**SETTINGS, rope_parameters=rope, tie_word_embeddings=False)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    elif family == "qwen3":
        rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        config = Qwen3Config(**SETTINGS, head_dim=32, rope_parameters=rope)
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / "source")
    else:
        sizes = {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16}
        own = {"sliding_window": 8, "vocab_size": 320, "bos_token_id": 2, "eos_token_id": 1}
        gemma = Gemma3ForCausalLM(Gemma3TextConfig(**{**SETTINGS, **sizes, **own}))
        for name, weight in gemma.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(weight, std=0.2)
        gemma.save_pretrained(tmp_path / "source")
    if family == "gemma3":
        save_piece_tokenizer(tmp_path / "source")
    else:
        save_merging_tokenizer(tmp_path / "source", begins=family == "llama")
    recommended = {"temperature": 0.5, "top_k": 20}
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps(recommended))
    source = open_checkpoint(tmp_path / "source")
    tokenizer = checkpoint_tokenizer(source)
    as_file, as_directory = both(source, tokenizer, tmp_path)
    assert_same_weights(as_file, as_directory)
    assert as_file.chat_template == source.chat_template
    assert as_file.sampling_defaults.values == recommended
    again = checkpoint_tokenizer(as_file)
    text = read_text(None)[3000:6000] + "<|im_end|>\n"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.template_tokens == tokenizer.template_tokens
    assert {*again.eos_token_ids} >= {*tokenizer.eos_token_ids}
    answers = []
    for checkpoint in (as_file, as_directory):
        with LLM(str(checkpoint.path), dtype="float32", quantization="none") as llm:
            [answer] = llm.generate(["The river is"], PARAMS)
            answers.append(answer.outputs[0].token_ids)
    assert answers[0] == answers[1]


def test_what_a_file_would_not_say_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    config: Any = LlamaConfig(**SETTINGS)
    LlamaForCausalLM(config).save_pretrained(plain)
    save_tokenizer(plain)  # without merges

    def refused(words: str, **changes: object) -> None:
        given = json.loads((plain / "config.json").read_text())
        (plain / "config.json").write_text(json.dumps({**given, **changes}))
        checkpoint = open_checkpoint(plain)
        tokenizer = checkpoint_tokenizer(checkpoint)
        with pytest.raises(UnsupportedModelError, match=words):
            quantize(checkpoint, tokenizer, TEXT, tmp_path / "o.gguf", 4.0, file_format="gguf",
                     kept=tmp_path)  # fmt: skip
        (plain / "config.json").write_text(json.dumps(given))

    refused("has no merges")
    save_merging_tokenizer(plain, begins=True, pattern=r"\p{L}+|.")
    refused("cuts text in a way that has no name there")
    refused("activation would be silu, not gelu_tanh", hidden_act="gelu_pytorch_tanh")
    refused("dense ones of the kinds llama, qwen2, qwen3, gemma3; this is 'mistral'",
            model_type="mistral")  # fmt: skip


def both(source: Checkpoint, tokenizer: Tokenizer, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """As a file and as a directory, with eight bits for every weight."""
    for out, file_format in ((folder / "out.gguf", "gguf"), (folder / "out", "safetensors")):
        kind: Any = file_format
        quantize(source, tokenizer, TEXT, out, 8.5, file_format=kind, kept=folder / "kept")
    return open_checkpoint(folder / "out.gguf"), open_checkpoint(folder / "out")


def assert_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    numbers = [
        {
            weight.name: reader.read(weight.name, torch.float32) + weight.offset
            for weight in each(checkpoint.description.weights())
            if isinstance(weight, Vector)
        }
        | {
            name: reader.read(name, torch.float32)
            for weight in matrices(checkpoint.description.weights())
            for name in weight.stored_names(checkpoint.tensors)
        }
        for checkpoint in (one, other)
        for reader in [TensorReader(checkpoint.tensors)]
    ]
    for name, tensor in numbers[0].items():
        assert torch.equal(tensor, numbers[1][name]), name


def save_merging_tokenizer(directory: Path, *, begins: bool, pattern: str | None = None) -> None:
    """Byte-level, with some merges and Llama 3's way of cutting, or Qwen's."""
    save_tokenizer(directory)
    rust = RustTokenizer.from_file(str(directory / "tokenizer.json"))
    content = json.loads(rust.to_str())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("1", "2")]
    vocab = content["model"]["vocab"]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    content["model"] |= {"merges": merges, "ignore_merges": begins}
    how = PRE_TOKENIZERS["llama-bpe" if begins else "qwen2"]
    split = {"type": "Split", "pattern": {"Regex": pattern or how.patterns[0]},
             "behavior": "Isolated", "invert": False}  # fmt: skip
    content["pre_tokenizer"] |= {"use_regex": False}
    content["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]
    }  # fmt: skip
    if not begins:
        content["normalizer"] = {"type": "NFC"}
    made = RustTokenizer.from_str(json.dumps(content))
    if begins:
        made.post_processor = TemplateProcessing(
            single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
        )
    made.save(str(directory / "tokenizer.json"))


def save_piece_tokenizer(directory: Path) -> None:
    """As Gemma's: pieces of SentencePiece with merges by their order, and bytes for the rest."""
    letters = "abcdefghijklmnopqrstuvwxyz\u2581"
    pieces = ["th", "the", "\u2581the", "in", "\u2581a"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "n"), ("\u2581", "a")]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    vocab = {token: index for index, token in enumerate(tokens)}
    rust = RustTokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    rust.normalizer = normalizers.Replace(" ", "\u2581")
    rust.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    rust.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    rust.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    rust.add_special_tokens([AddedToken(token, special=True) for token in special])
    rust.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
