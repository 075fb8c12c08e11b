"""What is trained and calibrated on: a text of the user's, or what the original model writes itself
(Liu et al. 2023, "LLM-QAT"): its own distributions are about that, and there is no end of it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from loire.api import LLM
from loire.base.sampling import SamplingParams
from loire.checkpoint.checkpoint import Checkpoint
from loire.quantize.calibration import cut, num_calibrated, read_text
from loire.text.tokenizer import checkpoint_tokenizer

BEGUN_TOKENS = 8
"""Of each text, from the calibration text; the model goes on from there."""
TOGETHER = 16
"""Texts that are written between two steps of a bar."""
SEED = 1


Texts = Sequence[Sequence[int]]
"""Token ids, all of one length."""


def texts_for(
    original: Checkpoint, text: Path | None, count: int, progress: Callable[[float], None]
) -> tuple[Texts, Texts]:
    """Those to train on, count of them at most, and those to check with.

    text: a file; None for the calibration text that comes with Loire, of which the part that
    `loire quantize` keeps apart is for checking too, the rest begins what the model writes.
    """
    tokenizer = checkpoint_tokenizer(original)
    given = read_text(None if text is None else str(text))
    texts = cut(tokenizer, given, original.description.max_positions, most=count + count // 4 + 2)
    known = num_calibrated(len(texts))
    known_texts, checked = texts[:known], texts[known:]
    if text is not None:
        return known_texts[:count], checked
    length = len(checked[0])
    own = written_texts(original.path, known_texts, count, length, progress)
    return own, checked


def own_texts(
    checkpoint: Checkpoint, text: str, count: int, progress: Callable[[float], None]
) -> list[list[int]]:
    """count texts that a model writes itself, as long as those that a text is cut into to calibrate
    on, and begun by these."""
    texts = cut(checkpoint_tokenizer(checkpoint), text, checkpoint.description.max_positions)
    known = texts[: num_calibrated(len(texts))]
    return written_texts(checkpoint.path, known, count, len(texts[0]), progress)


def written_texts(
    model: Path,
    beginnings: Sequence[Sequence[int]],
    count: int,
    length: int,
    progress: Callable[[float], None],
) -> list[list[int]]:
    """count texts of length tokens each, by the model itself. beginnings: token ids of texts, from
    places in which they are begun."""
    with LLM(str(model), max_model_len=length + 1) as llm:
        prompts = [_beginning(beginnings, index, count) for index in range(count)]
        found: list[list[int]] = []
        for first in range(0, count, TOGETHER):
            some = prompts[first : first + TOGETHER]
            params = [
                SamplingParams(
                    max_tokens=length - len(prompt),
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    min_p=0.0,
                    repetition_penalty=1.0,
                    ignore_eos=True,
                    seed=SEED + first + index,
                )
                for index, prompt in enumerate(some)
            ]
            outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in some], params)
            for prompt, output in zip(some, outputs, strict=True):
                found.append([*prompt, *output.outputs[0].token_ids])
            progress(len(found) / count)
    return found


def _beginning(beginnings: Sequence[Sequence[int]], index: int, count: int) -> list[int]:
    """Spread evenly over all of them."""
    flat = [token for text in beginnings for token in text]
    first = index * (len(flat) - BEGUN_TOKENS) // count
    return flat[first : first + BEGUN_TOKENS]
