"""What is trained and calibrated on: a text of the user's, or what the original model writes itself
(Liu et al. 2023, "LLM-QAT"): its own distributions are about that, and there is no end of it.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

from loire.api import LLM
from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.checkpoint.checkpoint import Checkpoint
from loire.quantize.calibration import cut, num_calibrated, read_text
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer

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

    text: a file; None for what the model writes. Half of it is begun by the calibration text that
    comes with Loire, of which the part that `loire quantize` keeps apart is for checking too, half
    by beginnings of a hundred kinds: on what it has seen nothing like, an adapter repairs less.
    """
    tokenizer = checkpoint_tokenizer(original)
    most = texts_needed(count)
    given = read_text(None if text is None else str(text), most)
    texts = cut(tokenizer, given, original.description.max_positions, most=most)
    known = num_calibrated(len(texts))
    known_texts, checked = texts[:known], texts[known:]
    if text is not None:
        return known_texts[:count], checked
    places = _places(tokenizer, known_texts, -(-count // 2))
    kinds = [
        [*tokenizer.first_ids, *tokenizer.encode(line, add_special_tokens=False)]
        for line in islice(cycle(_kinds()), count // 2)
    ]
    own = written_texts(original.path, places + kinds, len(checked[0]), progress)
    return own, checked


def texts_needed(count: int) -> int:
    """How many texts there have to be for count of them to train on, and others to check with."""
    return count + count // 4 + 2


def own_texts(
    checkpoint: Checkpoint, text: str, count: int, progress: Callable[[float], None]
) -> list[list[int]]:
    """count texts that a model writes itself, as long as those that a text is cut into to calibrate
    on, and begun by these."""
    tokenizer = checkpoint_tokenizer(checkpoint)
    texts = cut(tokenizer, text, checkpoint.description.max_positions)
    places = _places(tokenizer, texts[: num_calibrated(len(texts))], count)
    return written_texts(checkpoint.path, places, len(texts[0]), progress)


def written_texts(
    model: Path,
    prompts: Sequence[Sequence[int]],
    length: int,
    progress: Callable[[float], None],
) -> list[list[int]]:
    """Texts of length tokens each, by the model itself, begun by prompts (token ids).

    Raises RequestError if it cannot be computed, as its numbers are not finite.
    """
    with LLM(str(model), max_model_len=length) as llm:
        found: list[list[int]] = []
        for first in range(0, len(prompts), TOGETHER):
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
                [written] = output.outputs
                if written.error is not None:
                    raise RequestError(f"{model} cannot write texts: {written.error}")
                found.append([*prompt, *written.token_ids])
            progress(len(found) / len(prompts))
    return found


def _places(tokenizer: Tokenizer, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """count beginnings of texts, from places that are spread evenly over all of some texts."""
    start = tokenizer.first_ids
    flat = [token for text in texts for token in text[len(start) :]]
    firsts = (index * (len(flat) - BEGUN_TOKENS) // count for index in range(count))
    return [[*start, *flat[first : first + BEGUN_TOKENS]] for first in firsts]


def _kinds() -> list[str]:
    """How texts of many kinds begin, in an order in which kinds take turns."""
    lines = (files("loire.adapt") / "beginnings.txt").read_text(encoding="utf-8").splitlines()
    return [line.replace("\\n", "\n") for line in lines]
