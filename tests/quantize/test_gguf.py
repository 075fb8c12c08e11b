"""Files of standard types: what they hold is what was chosen, in the order that the file has it."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from checkpoint.checkpoint_files import LLAMA, gguf_name, llama_tensors, write_gguf
from loire.base.errors import UnsupportedModelError
from loire.checkpoint.open import open_checkpoint
from loire.models.tensors import TensorReader
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.tokenizer import checkpoint_tokenizer
from support.tiny_models import save_tiny_llama

CONFIG = LLAMA | {
    "vocab_size": 259, "hidden_size": 256, "intermediate_size": 288, "max_position_embeddings": 512
}  # fmt: skip


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
    text = read_text(None)[:1200]
    kept = tmp_path / "kept"
    report = quantize(before, tokenizer, text, out, 4.0, file_format="gguf", kept=kept)
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
    with pytest.raises(UnsupportedModelError, match="is no GGUF file"):
        quantize(plain, tokenizer, text, tmp_path / "other", 4.0, file_format="gguf", kept=kept)
