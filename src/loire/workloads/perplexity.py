"""How well a model foretells a text: its mean surprise per token, in nats, and the perplexity.

The text is cut as llama.cpp's llama-perplexity cuts it, so that numbers of the same file compare:
chunks of `context` tokens that do not overlap, in each of which the tokens of the second half
count, as they have half a context before them. With a stride chunks begin so many tokens apart, are
longer by half of it, and the last `stride` tokens of each count. Where the tokenizer begins a text
with a token of its own, that stands in the place of each chunk's first token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from loire.api import LLM
from loire.base.errors import RequestError
from loire.base.lora import LoRARequest
from loire.base.outputs import RequestOutput
from loire.base.sampling import SamplingParams
from loire.text.control_tokens import ControlTokens
from loire.text.tokenizer import Tokenizer

TOGETHER_TOKENS = 4096
"""About how many tokens are handed to the engine between two steps of a bar."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text, and which of its tokens count."""

    token_ids: tuple[int, ...]
    first_counted: int
    """Index of the first token that counts; all later ones do."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What a model makes of a text."""

    nats_per_token: float
    """Mean negative logarithm of the probabilities of the tokens that count."""
    uncertainty: float
    """Standard error of that mean, as if tokens were independent."""
    tokens: int
    """How many count."""
    chunks: int

    @classmethod
    def of(cls, losses: Sequence[Sequence[float]]) -> "Perplexity":
        """From what chunk_losses() found."""
        each = [loss for chunk in losses for loss in chunk]
        mean = math.fsum(each) / len(each)
        variance = math.fsum((loss - mean) ** 2 for loss in each) / max(len(each) - 1, 1)
        return cls(mean, math.sqrt(variance / len(each)), len(each), len(losses))

    @property
    def perplexity(self) -> float:
        """Its exponential."""
        return math.exp(self.nats_per_token)

    def as_dict(self) -> dict[str, float | int]:
        """For JSON."""
        return {"perplexity": self.perplexity, **asdict(self)}


def chunk_losses(
    llm: LLM,
    text: str,
    *,
    context: int,
    stride: int = 0,
    most_chunks: int | None = None,
    lora_request: LoRARequest | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[list[float]]:
    """For each chunk of a text the surprise, in nats, at each of its tokens that count: by the
    log-probabilities of prompts. llm takes chunk_size() + 1 tokens at least.

    stride: 0 for chunks that do not overlap. lora_request: an adapter to measure with. progress is
    told the share that is done. Raises RequestError if the text is shorter than one chunk, or a
    chunk cannot be computed.
    """
    token_ids, begins = text_tokens(llm.frontend.tokenizer, text)
    chunks = cut(token_ids, context=context, stride=stride, begins=begins)[:most_chunks]
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, ignore_eos=True)
    losses: list[list[float]] = []
    for group in _groups(chunks):
        prompts = [{"prompt_token_ids": chunk.token_ids} for chunk in group]
        outputs = llm.generate(prompts, params, lora_request=lora_request)
        losses += [list(_losses(*pair)) for pair in zip(group, outputs, strict=True)]
        if progress is not None:
            progress(len(losses) / len(chunks))
    return losses


def chunk_size(context: int, stride: int) -> int:
    """Tokens of a chunk."""
    return context + stride // 2


def text_tokens(tokenizer: Tokenizer, text: str) -> tuple[list[int], int | None]:
    """Token ids of a text, and the token that begins one, where the tokenizer has such.

    Control tokens in the text are text.
    """
    hidden = ControlTokens(tokenizer.control_tokens("")).hide(text)
    token_ids = tokenizer.encode(hidden, add_special_tokens=False)
    first_ids = tokenizer.first_ids
    return [*first_ids, *token_ids], first_ids[0] if first_ids else None


def cut(
    token_ids: Sequence[int], *, context: int, stride: int = 0, begins: int | None = None
) -> list[Chunk]:
    """The chunks of a text. Raises RequestError for one too short for a chunk, and odd sizes."""
    size = chunk_size(context, stride)
    if context < 4 or not 0 <= stride < context:
        raise RequestError(
            f"a context has 4 tokens or more and a stride fewer than it, not {context} and {stride}"
        )
    if len(token_ids) < size:
        raise RequestError(
            f"the text has {len(token_ids)} tokens, too few for one chunk of {size}: "
            f"take a longer one or a smaller context"
        )
    if stride:
        firsts = range(0, max(len(token_ids) - size, 1), stride)
        first_counted = size - stride
    else:
        firsts = range(0, len(token_ids) - size + 1, size)
        first_counted = size // 2 + 1
    chunks = []
    for first in firsts:
        ids = token_ids[first : first + size]
        ids = [begins, *ids[1:]] if begins is not None else ids
        chunks.append(Chunk(tuple(ids), first_counted))
    return chunks


def _groups(chunks: Sequence[Chunk]) -> Iterator[Sequence[Chunk]]:
    size = max(1, TOGETHER_TOKENS // len(chunks[0].token_ids))
    for first in range(0, len(chunks), size):
        yield chunks[first : first + size]


def _losses(chunk: Chunk, output: RequestOutput) -> Iterator[float]:
    """Of the tokens of a chunk that count."""
    [completion] = output.outputs
    if completion.error is not None:
        raise RequestError(f"the text cannot be measured: {completion.error}")
    positions = output.prompt_logprobs
    assert positions is not None
    for token_id, position in zip(
        chunk.token_ids[chunk.first_counted :], positions[chunk.first_counted :], strict=True
    ):
        assert position is not None
        yield -position[token_id].logprob
