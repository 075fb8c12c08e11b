"""A model of 16 bits larger than what memory the kernel gives is made smaller all the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny_models import VOCAB_SIZE, save_tokenizer

LAYERS = 32
CHILD = """
import mmap
import resource
import sys
import warnings
from pathlib import Path

import torch

from loire.checkpoint.open import open_checkpoint
from loire.quantize.calibration import read_text
from loire.quantize.run import quantize
from loire.text.tokenizer import checkpoint_tokenizer

source, out, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
# (Mapped files may be written to, so that the limit would count them; but nothing is: it would be
# the end of this process.)
mmap.ACCESS_COPY = mmap.ACCESS_READ
warnings.filterwarnings("ignore", "The given buffer is not writable")
checkpoint = open_checkpoint(source)
[used] = [line for line in open("/proc/self/status") if line.startswith("VmData")]
limit = int(used.split()[1]) * 1024 + int(checkpoint.weight_bytes * share)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    torch.zeros(checkpoint.weight_bytes, dtype=torch.uint8)
except RuntimeError:
    print("no room for its weights")
text = read_text(None)[:200]
tokenizer = checkpoint_tokenizer(checkpoint)
report = quantize(checkpoint, tokenizer, text, out, 4.0, kept=out.with_name("kept"))
print(f"{report.bits:.2f} bits")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_larger_than_the_memory_that_is_given(tmp_path: Path) -> None:
    """Beyond what Python and its libraries hold, there is room for nine tenths of its weights."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    source = tmp_path / "source"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
    save_tokenizer(source)
    finished = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(tmp_path / "out"), str(0.9)],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    said = finished.stdout.splitlines()
    assert said[0] == "no room for its weights"
    assert 3.0 < float(said[1].removesuffix(" bits")) <= 4.0
    assert (tmp_path / "out" / "config.json").exists()
