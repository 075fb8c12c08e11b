"""What is trained and calibrated on begins as a model's texts do, and with many kinds of text."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from loire.adapt.texts import own_texts, texts_for
from loire.checkpoint.open import open_checkpoint
from loire.quantize.calibration import cut, read_text
from loire.text.tokenizer import checkpoint_tokenizer
from support.tiny_models import SPECIAL, save_tiny_llama


def test_texts_begin_as_the_tokenizer_lets_them(tmp_path: Path) -> None:
    source = save_tiny_llama(tmp_path, max_positions=64)
    plain = checkpoint_tokenizer(open_checkpoint(source))
    assert plain.first_ids == ()
    file = str(source / "tokenizer.json")
    rust = Tokenizer.from_file(file)
    rust.post_processor = TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    rust.save(file)
    checkpoint = open_checkpoint(source)
    tokenizer = checkpoint_tokenizer(checkpoint)
    assert tokenizer.first_ids == (0,)
    text = read_text(None)[:640]
    ids = plain.encode(text)
    calibrated = cut(tokenizer, text, 64)
    assert calibrated == [[0, *ids[at : at + 63]] for at in range(0, 630, 63)]
    own = own_texts(checkpoint, text, 3, lambda share: None)
    assert [text[:9] for text in own] == [[0, *ids[at : at + 8]] for at in (0, 165, 330)]
    trained, checked = texts_for(checkpoint, None, 6, lambda share: None)
    assert {len(text) for text in [*own, *trained, *checked]} == {64}
    begun = [tokenizer.decode(text[1:]) for text in trained[3:]]
    assert begun[0].startswith("def parse_arguments(")
    assert begun[1].startswith("To configure the server, edit")
    assert all(text[0] == 0 for text in [*trained, *checked])
