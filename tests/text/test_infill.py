"""Fill in the middle: the form that a vocabulary has, and a clear refusal where there is none."""

from pathlib import Path

import pytest
from tokenizers import AddedToken

from loire.base.errors import RequestError
from loire.checkpoint.open import open_checkpoint
from loire.text.infill import FORMS, InfillForm, infill_form, infill_prompt
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer


def _with_markers(model: Path, form: InfillForm) -> Tokenizer:
    tokenizer = checkpoint_tokenizer(open_checkpoint(model))
    tokenizer.rust.add_special_tokens([AddedToken(text, special=True) for text in form.markers])
    return Tokenizer(tokenizer.rust, bos_token_id=0)


@pytest.mark.parametrize("form", FORMS)
def test_prompt_has_the_parts_in_the_models_order(tiny_llama: Path, form: InfillForm) -> None:
    tokenizer = _with_markers(tiny_llama, form)
    assert infill_form(tokenizer) is form
    ids = infill_prompt(tokenizer, "def f():\n", "\n    return x")
    texts = {"prefix": "def f():\n", "suffix": "\n    return x"}
    expected = "".join(texts.get(part, part) for part in form.parts)
    assert (ids[0] == 0) == form.begins
    assert tokenizer.decode(ids[int(form.begins) :], skip_special_tokens=False) == expected


def test_empty_parts_leave_the_markers(tiny_llama: Path) -> None:
    tokenizer = _with_markers(tiny_llama, FORMS[1])
    empty = infill_prompt(tokenizer, "", "")
    assert [tokenizer.id_of(marker) for marker in FORMS[1].markers] == empty


def test_other_models_are_refused(tiny_llama: Path) -> None:
    tokenizer = checkpoint_tokenizer(open_checkpoint(tiny_llama))
    with pytest.raises(RequestError, match="fills in the middle") as caught:
        infill_prompt(tokenizer, "a", "b")
    assert caught.value.param == "suffix"
