"""A tokenizer from the metadata of a GGUF file.

Three kinds occur in the supported families: byte-level BPE with merges ("gpt2"); SentencePiece
BPE with scores and byte fallback ("llama"), whose merges follow from the scores; and the same with
merges that are given ("gemma4").
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

CONTROL, USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type."""
MAX_PIECE = 256
"""Most characters of a SentencePiece piece, all of whose halves are looked up."""


def build_from_gguf(metadata: Mapping[str, Any]) -> RustTokenizer:
    """The tokenizer. Raises CheckpointError if the metadata is inconsistent, and
    UnsupportedModelError for a kind that Loire does not know."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens))
    begins = True
    if kind == "gpt2":
        how = _pre_tokenizer(metadata)
        rust, begins = _byte_level_bpe(metadata, tokens, how), how.begins
    elif kind == "llama":
        merges = merges_from_scores(metadata, tokens)
        rust = _sentencepiece(metadata, tokens, merges, add_space=True)
    elif kind == "gemma4":
        rust = _sentencepiece(metadata, tokens, _given_merges(metadata), add_space=False)
        # No piece goes over the end of a line.
        rust.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
        # Files that say otherwise are wrong (llama.cpp does not listen to them either).
        metadata = {**metadata, "tokenizer.ggml.add_bos_token": True}
    else:
        raise UnsupportedModelError(
            f"the GGUF tokenizer model {kind!r} is not supported; Loire knows 'gpt2', 'llama' and "
            f"'gemma4'"
        )
    _add_special(rust, tokens, types)
    _add_template(rust, metadata, tokens, default_bos=begins)
    return rust


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    name = str(metadata.get("tokenizer.ggml.pre", "missing"))
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"the pre-tokenizer {name[:80]!r} (tokenizer.ggml.pre) is not supported; Loire knows "
            f"{', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]


def _given_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for merge in _strings(metadata, "tokenizer.ggml.merges"):
        # (A piece may begin with a space, but no other has one.)
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not right:
            raise CheckpointError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
        pairs.append((left, right))
    return pairs


def _byte_level_bpe(
    metadata: Mapping[str, Any], tokens: Sequence[str], how: PreTokenizer
) -> RustTokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = _given_merges(metadata)
    try:
        model = BPE(vocab=vocab, merges=pairs, ignore_merges=how.whole_words)
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"the vocabulary and the merges disagree: {error}") from error
    rust = RustTokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in how.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    rust.decoder = decoders.ByteLevel()
    if how.composes:
        rust.normalizer = normalizers.NFC()
    return rust


def _sentencepiece(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    *,
    add_space: bool,
) -> RustTokenizer:
    """add_space: whether a text begins with one where the file says nothing of it."""
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    is_token = isinstance(unknown, int) and 0 <= unknown < len(tokens)
    unknown_token = tokens[unknown] if is_token else None
    model = BPE(
        vocab=vocab,
        merges=list(merges),
        unk_token=unknown_token,
        fuse_unk=True,
        byte_fallback="<0x00>" in vocab,
    )
    rust = RustTokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    stripping: list[decoders.Decoder] = []
    if metadata.get("tokenizer.ggml.add_space_prefix", add_space):
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


def merges_from_scores(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best-scored piece first.

    SentencePiece's BPE always merges the neighbours whose union scores highest.
    """
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
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
