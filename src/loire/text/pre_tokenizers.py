r"""How text is cut before merging, by tokenizer.ggml.pre of GGUF files: all names that llama.cpp
has for models of text.

A cut is a list of patterns: what the first matches is a piece by itself, what is between the
matches is cut by the next one. The patterns are those of the models' own tokenizer.json files
where these are known, else llama.cpp's (llama-vocab.cpp). They are Oniguruma's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_LLAMA3 = _CONTRACTIONS + _LETTERS + r"|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + _LETTERS + r"|\p{N}" + _REST
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    + _SPACES
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(upper: str, lower: str, ending: str = "") -> str:
    """Words that begin in capitals and go on in small letters, or are all capitals."""
    before = r"[^\r\n\p{L}\p{N}]?"
    return f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}"


_TEKKEN_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_TEKKEN = _words(_UPPER, _LOWER) + r"|\p{N}" + _TEKKEN_REST
_GPT4O = _words(_UPPER, _LOWER, _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _TEKKEN_REST
_NOT_HAN = r"&&[^\p{Han}]]"
_KIMI_K2 = (
    r"\p{Han}+|"
    + _words(_UPPER[:-1] + _NOT_HAN, _LOWER[:-1] + _NOT_HAN, _CONTRACTIONS + "?")
    + r"|\p{N}{1,3}"
    + _REST
)
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
)
_DEEPSEEK3 = (r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK_WORDS + r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES)
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED = (
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943]"
)
"""Cased letters as DeepSeek LLM lists them."""
_DEEPSEEK_LLM = (
    r"[\r\n]",
    r"\s?" + _CASED + "+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN_AND_HANGUL,
    r"\p{N}+",
)
_SENTENCES = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_THOUSANDS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
"""Three digits each, counted from the right."""
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_LINES = r"[^\n]+|[\n]+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one kind of byte-level BPE goes about a text."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    """A piece that is a token itself is not merged again."""
    begins: bool = False
    """The begin token comes first where a file says nothing of it."""
    composes: bool = False
    """Text is brought into Unicode's form NFC first, as the models' own files have it."""


_SINGLE_DIGITS = PreTokenizer((_DIGIT, _GPT2))
_PLAIN = PreTokenizer((_GPT2,))
_OF_LLAMA3 = PreTokenizer((_LLAMA3,), whole_words=True, begins=True)
_OF_QWEN2 = PreTokenizer((_QWEN2,))
_KINDS: tuple[tuple[str, PreTokenizer], ...] = (
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _OF_LLAMA3),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("qwen2", PreTokenizer((_QWEN2,), composes=True)),
    ("qwen35", PreTokenizer((_QWEN35,), composes=True)),
    ("deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open stablelm2 grok-2", _OF_QWEN2),
    ("tekken", PreTokenizer((_TEKKEN,), whole_words=True, begins=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    ("granite-embed-multi-97m", PreTokenizer((_GPT4O,), whole_words=True)),
    ("tiny_aya cohere2moe", PreTokenizer((_THOUSANDS, _GPT4O))),
    ("kimi-k2", PreTokenizer((_KIMI_K2,))),
    (
        "gpt-2 gpt2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum "
        "modern-bert jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion "
        "granite-docling exaone4",
        _PLAIN,
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        _SINGLE_DIGITS,
    ),
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(_DEEPSEEK3)),
    ("deepseek-llm", PreTokenizer(_DEEPSEEK_LLM)),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, _DIGIT)),
    ),
    (
        "spark2_5",
        PreTokenizer(
            (
                *_DEEPSEEK3[:2],
                _DEEPSEEK_WORDS + r"| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
                _DIGIT,
            )
        ),
    ),
    (
        "youtu",
        PreTokenizer(
            (
                "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b"
                "\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _HAN_AND_KANA,
                _words(_UPPER, _LOWER, _CONTRACTIONS + "?") + r"|\p{N}" + _TEKKEN_REST,
            ),
            whole_words=True,
        ),
    ),
    (
        "jais-2",
        PreTokenizer(
            (
                _CONTRACTIONS
                + _LETTERS
                + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                + "".join(rf"|\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1))
                + r"|\s{1,2}(?!\S)|\s{1}",
            )
        ),
    ),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_SENTENCES,))),
    ("viking", PreTokenizer((_SENTENCES, _DIGIT))),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "IMGIMG[A-I]{1,4}Z",
                r"[\t\n]|    |  ",
                _DIGIT,
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            begins=True,
        ),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "seed-coder",
        PreTokenizer(
            (_CONTRACTIONS + _LETTERS + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES,)
        ),
    ),
    ("ufakzeka", PreTokenizer((_LETTERS[1:] + r"|\p{N}" + _REST,))),
    (
        "afmoe",
        PreTokenizer(
            (_THOUSANDS, _ASIAN, _DEEPSEEK_WORDS + r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES)
        ),
    ),
    ("laguna", PreTokenizer((_LINES, _QWEN2))),
    (
        "exaone-moe",
        PreTokenizer(
            (
                _CONTRACTIONS
                + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
                + r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "minicpm5",
        PreTokenizer(
            (r"\p{N}{1,3}", _CONTRACTIONS + _LETTERS + r"|\p{N}+" + _REST), whole_words=True
        ),
    ),
)  # fmt: skip
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: kind for names, kind in _KINDS for name in names.split()
}
"""By tokenizer.ggml.pre."""


def name_of(how: PreTokenizer) -> str | None:
    """The first name of what goes about a text in that way, wherever it begins; None: there is
    none."""
    for name, kind in PRE_TOKENIZERS.items():
        if replace(kind, begins=how.begins) == how:
            return name
    return None
