"""What a decoder-only transformer is made of: enough to build it, size it and plan for it."""

from dataclasses import dataclass
from typing import Literal

from loire.base.config import DTYPE_BYTES

RopeScaling = Literal["none", "linear", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeDescription:
    """Rotary position embedding (Su et al. 2021) and how it is stretched.

    Attributes:
        rotary_dim: leading dimensions of a head that are rotated (all, unless partial).
        factor: by how much the window is stretched (linear, llama3, yarn).
        low_freq_factor, high_freq_factor: llama3's bounds of the band that is interpolated.
        original_max_positions: window before stretching, in tokens.
        beta_fast, beta_slow: yarn's bounds, in rotations over the original window.
        truncate_band: yarn rounds its band outwards to whole dimensions.
        attention_factor: scales cos and sin (yarn, longrope); None is the method's own formula.
        short_factors, long_factors: longrope's divisors per frequency, rotary_dim / 2 each.
        frequency_divisors: divisors per frequency that a file gives outright (GGUF's rope_freqs).
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate_band: bool = True
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    frequency_divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One decoder, described by its differences, not by its family.

    Attributes:
        architecture: family name such as "llama", "qwen3", "gemma2"; for messages and templates.
        layer_windows: per layer, how many latest positions a token sees (itself included),
            or None for all.
        local_rope: rotary embedding of the layers with a window, where it differs (Gemma 3).
        norm_offset: added to every RMSNorm weight (1.0 in the Gemma family's own files).
        qk_norm: RMSNorm over each head of queries and keys before the rotation.
        sandwich_norms: norms after attention and MLP as well as before (Gemma).
        embedding_scale: token embeddings are multiplied by it.
        query_scale: scores are multiplied by it; usually head_dim ** -0.5.
        attention_softcap, logit_softcap: x becomes cap * tanh(x / cap).
        eos_token_ids: tokens that end an output.
        dtype: dtype of the checkpoint's own unquantized weights.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: RopeDescription
    layer_windows: tuple[int | None, ...]
    local_rope: RopeDescription | None = None
    norm_offset: float = 0.0
    activation: Activation = "silu"
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    embedding_scale: float = 1.0
    query_scale: float = 0.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"

    @property
    def default_window(self) -> int:
        """Window to serve when nobody asks for one, in tokens.

        LongRoPE has two sets of frequencies; the short one, for the original window, is the more
        accurate, so the longer window must be asked for.
        """
        if self.rope.scaling == "longrope":
            return min(self.rope.original_max_positions, self.max_positions)
        return self.max_positions

    @property
    def query_size(self) -> int:
        """Elements of all query heads of one token."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key heads of one token; as many again for the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that the KV cache keeps per token, over all layers."""
        return 2 * self.num_layers * self.kv_size

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of them in a cache of dtype; int8 has a float32 scale per head of each vector."""
        if dtype == "int8":
            return self.kv_elements_per_token + 4 * 2 * self.num_layers * self.num_kv_heads
        return self.kv_elements_per_token * DTYPE_BYTES[dtype]
