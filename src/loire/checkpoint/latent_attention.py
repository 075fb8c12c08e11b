"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): a small cache for many heads.

See mixers.py for what a description is.
"""

from dataclasses import dataclass

from loire.checkpoint.mixers import CacheNeed, RopeDescription, causal_pairs
from loire.checkpoint.weights import Matrix, Place, Vector


@dataclass(frozen=True, slots=True)
class LatentAttentionWeights:
    """Weights of latent attention."""

    query_down: Matrix | None
    query_norm: Vector | None
    query: Matrix
    """Each head's dimensions without rotation, then those with it."""
    latent: Matrix
    """What keys and values are made of, then the rotated key that all heads share."""
    latent_norm: Vector
    keys_values: Matrix | None
    """Of each head, the key's rows, then the value's; None where they are apart."""
    keys: Matrix | None
    """Of each head, from a query to what is compared with a latent: the keys' rows, transposed."""
    values: Matrix | None
    output: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionDescription:
    """Self-attention whose keys and values are made of one latent vector per token.

    A head's key is Wk c and the token's rotated key, its value Wv c. Nothing but c and the rotated
    key is kept: q (Wk c) = (q Wk) c, so that queries are brought to the latent's size, and values
    are weighed there and brought to theirs afterwards.

    Attributes:
        key_dim: of a head's key, without what is rotated.
        rope_dim: dimensions that are rotated; their key is the same for all heads.
        query_rank: size that queries are brought down to first; None: not at all.
        rank: size of the latent.
        scale: scores are multiplied by it.
        interleaved: rotary pairs stand side by side in the file, else half the dimensions apart.
        bias: of the products that the hidden state goes into (q_proj left aside) and of the output.
        keys_apart: the file has keys and values of the latent as two tensors, the keys transposed
            (GGUF files since 2025).
        norm_eps: of the norms of latents.
    """

    num_heads: int
    key_dim: int
    rope_dim: int
    value_dim: int
    rank: int
    query_rank: int | None
    scale: float
    rope: RopeDescription
    interleaved: bool = True
    bias: bool = False
    keys_apart: bool = False
    norm_eps: float = 1e-6

    @property
    def cache_of(self) -> int | None:
        """What it keeps is its own."""
        return None

    @property
    def kept_dim(self) -> int:
        """Elements that are kept of a token: the rotated key and the latent."""
        return self.rope_dim + self.rank

    @property
    def cache(self) -> CacheNeed:
        """One vector per token, which all heads read as key and value."""
        return CacheNeed(kind="latent", num_vectors=1, vector_size=self.kept_dim)

    @property
    def activation_elements(self) -> int:
        """Queries as they come, brought to the latent's size, rotated, and the result twice."""
        each = self.key_dim + self.value_dim + 3 * self.kept_dim
        return self.num_heads * each + self.kept_dim + (self.query_rank or 0)

    def operations(self, context: float) -> float:
        """Scores and the sum of values, over what is kept."""
        return 4.0 * self.num_heads * self.kept_dim * context

    def prompt_operations(self, prompt: int) -> float:
        """Of every pair of query and key under a causal mask."""
        return 4.0 * self.num_heads * self.kept_dim * causal_pairs(prompt)

    @property
    def remembered_outputs(self) -> int:
        """What is kept."""
        return self.kept_dim

    def weights(self, place: Place) -> LatentAttentionWeights:
        """Names as in Hugging Face's DeepSeek-V3; keys and values apart as in llama.cpp's files."""
        prefix, heads, inputs = f"{place.prefix}self_attn.", self.num_heads, place.hidden_size
        norms = Place(prefix, inputs, place.norm_offset)
        query_rows, rank = heads * (self.key_dim + self.rope_dim), self.query_rank

        def matrix(name: str, rows: int, inputs: int, *, bias: bool = False) -> Matrix:
            return Matrix(name=f"{prefix}{name}", rows=(rows,), inputs=inputs, bias=bias)

        both = heads * (self.key_dim + self.value_dim)
        apart = self.keys_apart
        return LatentAttentionWeights(
            query_down=matrix("q_a_proj", rank, inputs, bias=self.bias) if rank else None,
            query_norm=norms.norm("q_a_layernorm", rank) if rank else None,
            query=matrix("q_b_proj" if rank else "q_proj", query_rows, rank or inputs),
            latent=matrix("kv_a_proj_with_mqa", self.kept_dim, inputs, bias=self.bias),
            latent_norm=norms.norm("kv_a_layernorm", self.rank),
            keys_values=None if apart else matrix("kv_b_proj", both, self.rank),
            keys=matrix("k_b_proj", heads * self.rank, self.key_dim) if apart else None,
            values=matrix("v_b_proj", heads * self.value_dim, self.rank) if apart else None,
            output=matrix("o_proj", inputs, heads * self.value_dim, bias=self.bias),
        )
