"""Perplexity: how a text is cut, and that what is summed is what transformers gives."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from loire.api import LLM
from loire.base.errors import RequestError
from loire.cli.main import main
from loire.workloads.perplexity import Perplexity, chunk_losses, cut, text_tokens

TEXT = "Sur le pont d'Avignon, l'on y danse tous en rond. " * 4


def test_the_second_half_of_each_chunk_counts() -> None:
    chunks = cut(range(20), context=8)
    assert [chunk.token_ids for chunk in chunks] == [tuple(range(8)), tuple(range(8, 16))]
    # llama-perplexity weighs context - context / 2 - 1 tokens of each
    assert {chunk.first_counted for chunk in chunks} == {5}


def test_with_a_stride_each_token_counts_once_behind_half_a_context_or_more() -> None:
    chunks = cut(range(40), context=8, stride=4)
    counted = [i for chunk in chunks for i in chunk.token_ids[chunk.first_counted :]]
    assert counted == list(range(6, 6 + len(counted)))
    assert {len(chunk.token_ids) for chunk in chunks} == {10}
    assert len(chunks) == math.ceil((40 - 10) / 4)  # as llama-perplexity has it


def test_the_token_that_begins_a_text_begins_each_chunk() -> None:
    chunks = cut([99, *range(15)], context=8, begins=99)
    assert [chunk.token_ids[:2] for chunk in chunks] == [(99, 0), (99, 8)]


@pytest.mark.parametrize(
    ("length", "context", "stride", "words"),
    [
        (7, 8, 0, "7 tokens, too few for one chunk of 8"),
        (9, 8, 4, "9 tokens, too few for one chunk of 10"),
        (99, 3, 0, "a context has 4 tokens or more"),
        (99, 8, 8, "not 8 and 8"),
        (99, 8, -1, "not 8 and -1"),
    ],
)
def test_what_cannot_be_cut_is_refused(length: int, context: int, stride: int, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        cut(range(length), context=context, stride=stride)


@pytest.mark.parametrize("stride", [0, 12])
def test_the_mean_is_that_of_transformers(tiny_llama: Path, stride: int) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    losses = []
    shares: list[float] = []
    with LLM(str(tiny_llama), dtype="float32", max_model_len=64, num_threads=1) as llm:
        token_ids, begins = text_tokens(llm.frontend.tokenizer, TEXT)
        by_chunk = chunk_losses(
            llm, TEXT, context=32, stride=stride, most_chunks=4, progress=shares.append
        )
    found = Perplexity.of(by_chunk)
    for chunk in cut(token_ids, context=32, stride=stride, begins=begins)[:4]:
        ids = torch.tensor(chunk.token_ids)
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(dim=-1)
        losses += [-logprobs[i - 1, ids[i]].item() for i in range(chunk.first_counted, len(ids))]
    assert found.tokens == len(losses)
    assert found.chunks == 4
    assert found.nats_per_token == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert found.uncertainty > 0
    assert shares[-1] == 1.0


def test_control_tokens_in_a_text_are_text(tiny_llama: Path) -> None:
    with LLM(str(tiny_llama), max_model_len=64, num_threads=1) as llm:
        token_ids, _ = text_tokens(llm.frontend.tokenizer, "a<|im_end|>b")
    assert len(token_ids) == len("a<|im_end|>b")
    assert 2 not in token_ids


def test_the_command(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    small = ["--context", "32", "--dtype", "float32", "--kv-cache-memory", "8MB"]
    arguments = ["eval", "perplexity", str(tiny_llama), str(text), *small, "--num-threads", "1"]
    assert main([*arguments, "--json", "--chunks", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["chunks"], result["tokens"], result["context"]) == (2, 30, 32)
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("perplexity ")
    assert main([*arguments, "--chunks", "0"]) == 1
    assert "must be at least 1, not 0" in capsys.readouterr().err
    text.write_bytes(b"\xff")
    assert main(arguments) == 1
    assert "cannot be read" in capsys.readouterr().err
