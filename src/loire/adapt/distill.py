"""Training by distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network"):
the quantized model with an adapter learns to give each next token the probability that the model
it was made from gives it.

What is trained is computed by the reference backend, whose torch operations can be differentiated:
the very definition of what a server computes with an adapter, for every family that can have one.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from loire.adapt.low_rank import NUMBER
from loire.adapt.texts import Texts
from loire.checkpoint.checkpoint import Checkpoint
from loire.execution.whole_texts import WholeTexts
from loire.kernels.interface import AdapterRows, Backend
from loire.models.decoder import Decoder
from loire.models.loading import load_decoder

MOST_LOGITS = 2**26
"""Of a step, positions times vocabulary: what is compared is a random choice of positions where
there are more."""
LOGITS_TOGETHER = 2**22
"""That are compared at a time: as many as caches hold, and memory that need not be asked for
again."""


def load(checkpoint: Checkpoint, max_tokens: int, dtype: torch.dtype, backend: Backend) -> Decoder:
    """A model with its weights as plain numbers."""
    return load_decoder(
        checkpoint,
        dtype=dtype,
        device=torch.device("cpu"),
        backend=backend,
        max_model_len=max_tokens,
        quantization="none",
    )


def hidden_states(decoder: Decoder, texts: Texts, *, adapted: bool) -> Tensor:
    """After the final norm, [texts * tokens, E]. adapted: with the adapter that is attached."""
    backend: Backend = decoder.backend
    whole = WholeTexts(decoder.description, backend, texts)
    batches = whole.batches
    if adapted:
        numbers = torch.full_like(whole.token_ids, NUMBER, dtype=torch.int32)
        batches = tuple(replace(batch, adapters=AdapterRows(numbers)) for batch in batches)
    caches = whole.caches(decoder.head.dtype)
    return decoder.forward(whole.token_ids, batches, whole.plans, caches)


def divergence(teacher: Decoder, student: Decoder, truth: Tensor, states: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the next token's distributions in nats, the mean over tokens.

    truth, states: final hidden states [T, E] of teacher and student.
    """
    with torch.no_grad():
        wanted = F.log_softmax(teacher.logits(truth), dim=-1)
    found = F.log_softmax(student.logits(states), dim=-1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def pull_together(teacher: Decoder, student: Decoder, truth: Tensor, states: Tensor) -> float:
    """divergence(), whose gradients are added to those of all that states were made of."""
    own = states.detach().requires_grad_()
    total = 0.0
    step = max(1, LOGITS_TOGETHER // student.description.vocab_size)
    for first in range(0, len(states), step):
        here, there = own[first : first + step], truth[first : first + step]
        apart = divergence(teacher, student, there, here) * (len(here) / len(states))
        apart.backward()
        total += float(apart.detach())
    states.backward(own.grad)
    return total


def chosen_positions(num_tokens: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """int64: those of a step's tokens that are compared."""
    most = max(1, MOST_LOGITS // vocab_size)
    order = torch.randperm(num_tokens, generator=generator)
    return order[:most]


def surprise(decoder: Decoder, states: Tensor, texts: Texts) -> float:
    """Mean nats per token of texts, by their final hidden states [texts * tokens, E]."""
    length = len(texts[0])
    total = 0.0
    for text, own in zip(texts, states.split(length), strict=True):
        logits = decoder.logits(own[:-1])
        total += float(F.cross_entropy(logits, torch.tensor(text[1:])))
    return total / len(texts)
