"""A model on disk, whatever its file format: description, tensors, tokenizer, chat template.

Tensor names are those of Hugging Face's Llama, for every format and family:

    model.embed_tokens.weight
    model.layers.N.input_layernorm.weight
    model.layers.N.self_attn.{q,k,v,o}_proj.{weight,bias}   or  self_attn.qkv_proj.weight
    model.layers.N.self_attn.{q,k}_norm.weight
    model.layers.N.post_attention_layernorm.weight
    model.layers.N.{pre,post}_feedforward_layernorm.weight  (sandwich norms)
    model.layers.N.mlp.{gate,up,down}_proj.{weight,bias}    or  mlp.gate_up_proj.weight
    model.norm.weight
    lm_head.weight

With sandwich norms, post_attention_layernorm follows attention, as in Gemma; otherwise it precedes
the MLP, as in Llama.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from loire.base.config import EngineOptions
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.formats import WeightFormat
from loire.checkpoint.sampling_defaults import SamplingDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies. The range has been checked against the size of its file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in torch: [out_features, in_features] for a linear weight."""
    format: WeightFormat
    path: Path
    offset: int
    """Bytes from the start of the file."""
    num_bytes: int
    interleaved_heads: int = 0
    """If not 0: the rows are that many heads whose rotary pairs stand side by side (GGUF files of
    the Llama family); the loader puts them back into halves."""
    exponents: "TensorInfo | None" = None
    """Those of codes in MXFP4, where they lie apart (loire.checkpoint.mxfp4)."""
    levels: "TensorInfo | None" = None
    """What codes of a format with levels stand for, int8 [tables, levels], where the file says."""
    level_rows: int = 0
    """Rows of the weight that share one of those tables."""
    inputs_first: bool = False
    """Whether numbers lie the other way round: [in_features, out_features]."""
    quantized: "QuantizedWeight | None" = None
    """If not None: of what the weight is made; the range is that of its codes, the format what it
    becomes."""

    @property
    def num_elements(self) -> int:
        """Of the weight."""
        return math.prod(self.shape)

    @property
    def is_quantized(self) -> bool:
        """Whether it has codes instead of numbers of 16 or 32 bits."""
        return self.quantized is not None or self.format.block_elements > 1

    @property
    def parts(self) -> "tuple[TensorInfo, ...]":
        """The tensors that hold it."""
        if self.quantized is not None:
            return self.quantized.parts
        return (self, *(part for part in (self.exponents, self.levels) if part is not None))

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, of all its parts."""
        return sum(part.num_bytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight [outputs, inputs] in several tensors of a safetensors file:

    (code - zero point) * scale
    """

    layout: Literal["words", "awq", "gptq", "plain", "fp4"]
    """How codes lie: in words of 32 bits along the inputs, in AWQ's or GPTQ's, each by itself; or
    two in a byte, numbers in FP4."""
    bits: int
    codes: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None = None
    """Zero points; None where each is the middle of the codes, or 0 for codes with a sign."""
    groups: TensorInfo | None = None
    """[inputs]: to which group each belongs, where that is not their order."""
    order: bytes | None = None
    """Where that makes whole groups of an order of the inputs: a digest of it."""
    group_size: int
    """Inputs that share a scale."""
    rows_per_scale: int = 1
    """Outputs that share a scale."""
    zero_offset: int = 0
    """Added to the zero points."""
    middle: TensorInfo | None = None
    """Zero points that the file says are the middle, to be checked."""
    factor: TensorInfo | None = None
    """FP4: one number that all scales are multiplied by, or divided by."""
    divides: bool = False

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """All its tensors."""
        given = (self.codes, self.scales, self.zeros, self.groups, self.middle, self.factor)
        return tuple(part for part in given if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSource:
    """Where the tokenizer comes from: a tokenizer.json, or a GGUF file's metadata."""

    tokenizer_json: Path | None = None
    tokenizer_config: Mapping[str, object] = field(default_factory=dict)
    """Parsed tokenizer_config.json (special tokens, add_bos_token, ...), or empty."""
    gguf_metadata: Mapping[str, object] | None = None
    """All keys of a GGUF file; arrays as lists or numpy arrays, strings as str."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk. open_checkpoint() makes one; nothing of the weights is read before use."""

    path: Path
    description: ModelDescription
    tensors: Mapping[str, TensorInfo]
    tokenizer: TokenizerSource
    chat_template: str | Mapping[str, str] | None = None
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    """What requests that say nothing of sampling get."""

    def with_options(self, options: EngineOptions) -> "Checkpoint":
        """With the chat template and the recommendations that the user wants instead."""
        recommended = self.sampling_defaults
        if options.generation_config == "none":
            recommended = SamplingDefaults()
        return replace(
            self,
            chat_template=options.chat_template or self.chat_template,
            sampling_defaults=replace(
                recommended, values={**recommended.values, **options.override_generation_config}
            ),
        )

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as they lie on disk."""
        return sum(tensor.stored_bytes for tensor in self.tensors.values())
