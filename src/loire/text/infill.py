"""Fill in the middle: prompts of models that write what belongs between a prefix and a suffix.

Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle". Each family
marks the parts with special tokens of its own; which ones a model knows stands in its vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loire.base.errors import RequestError
from loire.text.tokenizer import Tokenizer

PREFIX, SUFFIX = "prefix", "suffix"


@dataclass(frozen=True, slots=True)
class InfillForm:
    """Special tokens, and between them where prefix and suffix go, in the order of the prompt.

    begins: whether the beginning-of-sequence token comes first.
    """

    parts: Sequence[str]
    begins: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """The special tokens."""
        return tuple(part for part in self.parts if part not in (PREFIX, SUFFIX))


FORMS = (
    # Codestral and other models of Mistral: the suffix first, the prefix goes on into the answer.
    InfillForm(("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX), begins=True),
    # Qwen 2.5 Coder, CodeGemma
    InfillForm(("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>")),
    # StarCoder, SantaCoder and others that follow them
    InfillForm(("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>")),
    # DeepSeek Coder
    InfillForm(
        (
            "<\uff5cfim\u2581begin\uff5c>",
            PREFIX,
            "<\uff5cfim\u2581hole\uff5c>",
            SUFFIX,
            "<\uff5cfim\u2581end\uff5c>",
        ),
        begins=True,
    ),
    # Code Llama
    InfillForm(("\u2581<PRE>", PREFIX, "\u2581<SUF>", SUFFIX, "\u2581<MID>"), begins=True),
)


def infill_form(tokenizer: Tokenizer) -> InfillForm | None:
    """The form that a model's vocabulary has the tokens of; None if it has none."""
    for form in FORMS:
        if all(tokenizer.id_of(marker) is not None for marker in form.markers):
            return form
    return None


def infill_prompt(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Token ids of a prompt that asks for what stands between the two.

    Raises RequestError if the model was not made for that.
    """
    form = infill_form(tokenizer)
    if form is None:
        known = "; ".join(" ".join(form.markers) for form in FORMS)
        raise RequestError(
            f"'suffix' needs a model that fills in the middle, but the vocabulary of this one has "
            f"the tokens of no known form ({known}): put everything into the prompt",
            param="suffix",
        )
    texts = {PREFIX: prefix, SUFFIX: suffix}
    ids: list[int] = []
    if form.begins and tokenizer.bos_token_id is not None:
        ids.append(tokenizer.bos_token_id)
    for part in form.parts:
        if part in texts:
            ids += tokenizer.encode(texts[part], add_special_tokens=False)
        else:
            marker = tokenizer.id_of(part)
            assert marker is not None, "the form was chosen by its markers"
            ids.append(marker)
    return ids
