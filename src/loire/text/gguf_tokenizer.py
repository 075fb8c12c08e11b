"""A tokenizer from the metadata of a GGUF file.

Two kinds occur in the supported families: byte-level BPE with merges ("gpt2"), and SentencePiece
BPE with scores and byte fallback ("llama"), whose merges follow from the scores.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from loire.base.errors import CheckpointError, UnsupportedModelError

CONTROL, USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type."""
MAX_PIECE = 256
"""Most characters of a SentencePiece piece, all of whose halves are looked up."""

# How text is cut before merging, by tokenizer.ggml.pre. These are the patterns that the models'
# own tokenizer.json files hold.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2, "tekken": _TEKKEN}
_BYTE_LEVEL = ("gpt-2", "gpt2", "smollm")


def build_from_gguf(metadata: Mapping[str, Any]) -> RustTokenizer:
    """The tokenizer. Raises CheckpointError if the metadata is inconsistent, and
    UnsupportedModelError for a kind that Loire does not know."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens))
    if kind == "gpt2":
        rust = _byte_level_bpe(metadata, tokens)
    elif kind == "llama":
        rust = _sentencepiece(metadata, tokens)
    else:
        raise UnsupportedModelError(
            f"the GGUF tokenizer model {kind!r} is not supported; Loire knows 'gpt2' and 'llama'"
        )
    _add_special(rust, tokens, types)
    _add_template(rust, metadata, tokens, default_bos=kind == "llama")
    return rust


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: Sequence[str]) -> RustTokenizer:
    pairs = []
    for merge in _strings(metadata, "tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or not left or not right:
            raise CheckpointError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
        pairs.append((left, right))
    name = str(metadata.get("tokenizer.ggml.pre", "missing"))
    vocab = {token: index for index, token in enumerate(tokens)}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in _BYTE_LEVEL)
    pre_tokenizer: pre_tokenizers.PreTokenizer
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), "isolated")
        pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif name in _BYTE_LEVEL:
        pre_tokenizer = byte_level
    else:
        raise UnsupportedModelError(
            f"the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not supported; Loire knows "
            f"{', '.join(sorted((*_SPLITS, *_BYTE_LEVEL)))}"
        )
    whole_words = name in ("llama-bpe", "llama3", "tekken")
    try:
        model = BPE(vocab=vocab, merges=pairs, ignore_merges=whole_words)
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"the vocabulary and the merges disagree: {error}") from error
    rust = RustTokenizer(model)
    rust.pre_tokenizer = pre_tokenizer
    rust.decoder = decoders.ByteLevel()
    if name == "qwen2":
        rust.normalizer = normalizers.NFC()
    return rust


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> RustTokenizer:
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    is_token = isinstance(unknown, int) and 0 <= unknown < len(tokens)
    unknown_token = tokens[unknown] if is_token else None
    model = BPE(
        vocab=vocab,
        merges=_merges_from_scores(tokens, scores, vocab),
        unk_token=unknown_token,
        fuse_unk=True,
        byte_fallback="<0x00>" in vocab,
    )
    rust = RustTokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    stripping: list[decoders.Decoder] = []
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend("\u2581"))
        stripping.append(decoders.Strip(" ", 1, 0))
    rust.normalizer = normalizers.Sequence(steps)
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *stripping,
        ]
    )
    return rust


def _merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], vocab: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best-scored piece first.

    SentencePiece's BPE always merges the neighbours whose union scores highest.
    """
    longest = max(map(len, tokens))
    if longest > MAX_PIECE:
        raise CheckpointError(
            f"the vocabulary has a piece of {longest} characters, more than the {MAX_PIECE} that "
            f"any real one stays far below"
        )
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-score, left, right, token[:cut], token[cut:]))
    merges.sort()
    return [(left, right) for _, _, _, left, right in merges]


def _add_special(rust: RustTokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == USER_DEFINED:
            # Runs of spaces are written with U+2581, as the normalised text has them.
            plain.append(AddedToken(token, normalized="\u2581" in token, special=False))
    rust.add_special_tokens(special)
    rust.add_tokens(plain)


def _add_template(
    rust: RustTokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], *, default_bos: bool
) -> None:
    """Put the begin and end tokens around a text, where the file asks for it."""

    def named(kind: str, default: bool) -> list[tuple[str, int]]:
        index = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if not metadata.get(f"tokenizer.ggml.add_{kind}_token", default):
            return []
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            return []
        return [(tokens[index], index)]

    before, after = named("bos", default_bos), named("eos", False)
    if before or after:
        pieces = [*(token for token, _ in before), "$A", *(token for token, _ in after)]
        rust.post_processor = processors.TemplateProcessing(
            single=pieces, pair=[*pieces, "$B"], special_tokens=[*before, *after]
        )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"the GGUF metadata has no list of strings {key}")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> Sequence[Any]:
    value = metadata.get(key)
    if not isinstance(value, array) or len(value) != count:
        found = len(value) if isinstance(value, array) else "none"
        raise CheckpointError(f"{key} should have {count} numbers, one per token, but has {found}")
    return value
