"""Weights from a checkpoint into a decoder, layer by layer, so that memory peaks at little more
than the final size. Every tensor must be used and every weight be there."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from loire.base.config import Quantization
from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import Activation, ModelDescription
from loire.checkpoint.formats import Q4_1, Q4_K
from loire.kernels.dequantize import fastest_dequantize
from loire.kernels.interface import AttentionShape, Backend, HeadNorms, Linear, RotaryTable
from loire.kernels.quantization import elements_of_q4_1
from loire.models.decoder import MLP, Attention, Decoder, Layer
from loire.models.rotary import rotary_table
from loire.models.tensors import TensorReader

LAYERS_AHEAD = 2
FUSED = (
    ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    ("gate_proj.weight", "up_proj.weight"),
)
"""Matrices that are computed as one, where a file has them apart."""


def load_decoder(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    max_model_len: int,
    quantization: Quantization | None = None,
    progress: Callable[[float], None] | None = None,
) -> Decoder:
    """Read, convert and prepare all weights.

    Raises CheckpointError naming tensors that are missing, left over or of the wrong shape.
    """
    return _Loader(checkpoint, dtype, device, backend, max_model_len, quantization).load(progress)


class _Loader:
    """Takes tensors by name, once each, and keeps count."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend,
        max_model_len: int,
        quantization: Quantization | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.description = checkpoint.description
        self.dtype = dtype
        self.device = device
        self.backend = backend
        self.quantization = quantization
        self.reader = TensorReader(checkpoint.tensors, fastest_dequantize(backend))
        self.taken: set[str] = set()
        description = self.description
        self.rotary = rotary_table(description.rope, max_model_len, device)
        self.local_rotary = (
            self.rotary
            if description.local_rope is None
            else rotary_table(description.local_rope, max_model_len, device)
        )

    def load(self, progress: Callable[[float], None] | None) -> Decoder:
        self._check_names()
        description = self.description
        embedding = self._weight(
            "model.embed_tokens.weight", (description.vocab_size, description.hidden_size)
        )
        layers = []
        # Reading and dequantizing run ahead on other threads while a layer is packed: by two
        # layers, as so many more in memory are few and all of them would be a second copy.
        with ThreadPoolExecutor(LAYERS_AHEAD) as pool:
            ahead = deque(pool.submit(self._prefetch, index) for index in range(LAYERS_AHEAD))
            for index in range(description.num_layers):
                tensors = ahead.popleft().result()
                ahead.append(pool.submit(self._prefetch, index + LAYERS_AHEAD))
                layers.append(self._layer(index, tensors))
                if progress is not None:
                    progress((index + 1) / (description.num_layers + 1))
        final_norm = self._norm("model.norm.weight", description.hidden_size)
        head_weight = embedding
        if not description.tied_embeddings:
            head_weight = self._weight("lm_head.weight", tuple(embedding.shape))
        # The distribution over tokens is what quantization hurts most: 8 bits at least.
        head_quantization: Quantization | None = None if self.quantization is None else "int8"
        head = self.backend.linear(head_weight, quantization=head_quantization)
        if progress is not None:
            progress(1.0)
        return Decoder(description, self.backend, embedding, layers, final_norm, head)

    # --- names --------------------------------------------------------------------------------

    def _check_names(self) -> None:
        present = set(self.checkpoint.tensors)
        expected = set(expected_names(self.description, present))
        if self.description.tied_embeddings:
            present.discard("lm_head.weight")  # some files repeat the embedding there
        missing, unused = sorted(expected - present), sorted(present - expected)
        if missing or unused:
            raise CheckpointError(
                f"{self.checkpoint.path} does not hold the weights of a "
                f"{self.description.architecture} model: {_named('missing', missing)}; "
                f"{_named('unused', unused)}"
            )

    # --- one layer ----------------------------------------------------------------------------

    def _prefetch(self, index: int) -> dict[str, Tensor]:
        """All tensors of a layer on the host, converted to the model's dtype, or in the blocks of
        the file where they stay so."""
        prefix = f"model.layers.{index}."
        return {
            name.removeprefix(prefix): self._read(name)
            for name in self.checkpoint.tensors
            if name.startswith(prefix)
        }

    def _read(self, name: str) -> Tensor:
        if self._stays_as_stored(name):
            blocks = self.reader.read_blocks(name)
            return blocks if self._packed_once(name) else blocks.clone()
        return self.reader.read(name, self._dtype_of(name), may_share=self._packed_once(name))

    def _stays_as_stored(self, name: str) -> bool:
        """Whether a matrix, and those computed with it, is kept in the four bits of the file."""
        if self.quantization != "int4" or not name.endswith("proj.weight"):
            return False
        part = ".".join(name.split(".")[-2:])
        together = next((parts for parts in FUSED if part in parts), (part,))
        names = [name.removesuffix(part) + other for other in together]
        tensors = self.checkpoint.tensors
        return all(other in tensors and tensors[other].format in (Q4_1, Q4_K) for other in names)

    def _packed_once(self, name: str) -> bool:
        """Whether a tensor is a matrix that the backend copies into a form of its own."""
        on_host = self.device.type == "cpu"
        return name.endswith("proj.weight") and self.backend.copies_weights and on_host

    def _dtype_of(self, name: str) -> torch.dtype:
        return torch.float32 if "norm" in name else self.dtype

    def _layer(self, index: int, tensors: dict[str, Tensor]) -> Layer:
        description = self.description
        take = _Taker(tensors, index, self.device)
        hidden, offset = description.hidden_size, description.norm_offset

        def norm(name: str) -> Tensor:
            return take(f"{name}.weight", (hidden,)) + offset

        sandwich = description.sandwich_norms
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        return Layer(
            attention=self._attention(index, take),
            mlp=self._mlp(take),
            norm_before_attention=norm("input_layernorm"),
            norm_before_mlp=norm(before_mlp),
            norm_after_attention=norm("post_attention_layernorm") if sandwich else None,
            norm_after_mlp=norm("post_feedforward_layernorm") if sandwich else None,
        )

    def _attention(self, index: int, take: "_Taker") -> Attention:
        description = self.description
        hidden, dim = description.hidden_size, description.head_dim
        sizes = (description.query_size, description.kv_size, description.kv_size)
        names = [f"self_attn.{part}_proj" for part in "qkv"]
        weight, bias = take.fused(
            names, "self_attn.qkv_proj", sizes, hidden, with_bias=description.qkv_bias
        )
        output_bias = None
        if description.output_bias:
            output_bias = take("self_attn.o_proj.bias", (hidden,))
        norms = None
        if description.qk_norm:
            norms = HeadNorms(
                take("self_attn.q_norm.weight", (dim,)) + description.norm_offset,
                take("self_attn.k_norm.weight", (dim,)) + description.norm_offset,
                description.norm_eps,
            )
        window = description.layer_windows[index]
        output = take("self_attn.o_proj.weight", (hidden, description.query_size))
        return Attention(
            shape=AttentionShape(
                num_heads=description.num_heads,
                num_kv_heads=description.num_kv_heads,
                head_dim=dim,
                scale=description.query_scale,
                window=window,
                softcap=description.attention_softcap,
            ),
            qkv=self._linear(weight, bias),
            output=self._linear(output, output_bias),
            norms=norms,
            rotary=self._rotary(window),
        )

    def _rotary(self, window: int | None) -> RotaryTable:
        return self.rotary if window is None else self.local_rotary

    def _mlp(self, take: "_Taker") -> MLP:
        description = self.description
        hidden, inner = description.hidden_size, description.intermediate_size
        weight, bias = take.fused(
            ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.gate_up_proj",
            (inner, inner),
            hidden,
            with_bias=description.mlp_bias,
        )
        down_bias = take("mlp.down_proj.bias", (hidden,)) if description.mlp_bias else None
        return MLP(
            gate_up=self._linear(weight, bias, description.activation),
            down=self._linear(take("mlp.down_proj.weight", (hidden, inner)), down_bias),
        )

    def _linear(
        self,
        weight: Tensor | Sequence[Tensor],
        bias: Tensor | None,
        gate: Activation | None = None,
    ) -> Linear:
        parts = [weight] if isinstance(weight, Tensor) else weight
        if parts[0].dtype is torch.uint8:
            return self.backend.stored_linear(parts, bias, dtype=self.dtype, gate=gate)
        return self.backend.linear(weight, bias, quantization=self.quantization, gate=gate)

    # --- single tensors -----------------------------------------------------------------------

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return _shaped(name, self.reader.read(name, self.dtype), shape).to(self.device)

    def _norm(self, name: str, size: int) -> Tensor:
        weight = _shaped(name, self.reader.read(name, torch.float32), (size,))
        return (weight + self.description.norm_offset).to(self.device)


class _Taker:
    """Hands out the tensors of one layer, checking their shapes, and lets go of each."""

    def __init__(self, tensors: dict[str, Tensor], index: int, device: torch.device) -> None:
        self._tensors = tensors
        self._prefix = f"model.layers.{index}."
        self._device = device

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = _shaped(self._prefix + name, self._tensors.pop(name), shape)
        return tensor.to(self._device)

    def fused(
        self,
        names: Sequence[str],
        fused_name: str,
        sizes: Sequence[int],
        in_features: int,
        *,
        with_bias: bool,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Weight [sum(sizes), in] in parts, and bias, of projections that are computed as one."""
        if f"{fused_name}.weight" in self._tensors:
            weight = self(f"{fused_name}.weight", (sum(sizes), in_features))
            bias = self(f"{fused_name}.bias", (sum(sizes),)) if with_bias else None
            return [weight], bias
        pairs = list(zip(names, sizes, strict=True))
        parts = [self(f"{name}.weight", (size, in_features)) for name, size in pairs]
        if not with_bias:
            return parts, None
        return parts, torch.cat([self(f"{name}.bias", (size,)) for name, size in pairs])


def expected_names(description: ModelDescription, present: set[str]) -> list[str]:
    """Names of all tensors that a model of this description has.

    present decides between separate and fused projections where both are in use.
    """
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    if not description.tied_embeddings:
        names.append("lm_head.weight")
    for layer in range(description.num_layers):
        prefix = f"model.layers.{layer}."
        fused_qkv = f"{prefix}self_attn.qkv_proj.weight" in present
        fused_mlp = f"{prefix}mlp.gate_up_proj.weight" in present
        qkv = ["qkv"] if fused_qkv else ["q", "k", "v"]
        gate_up = ["gate_up"] if fused_mlp else ["gate", "up"]
        parts = [f"self_attn.{part}_proj.weight" for part in [*qkv, "o"]]
        parts += [f"mlp.{part}_proj.weight" for part in [*gate_up, "down"]]
        parts += ["input_layernorm.weight", "post_attention_layernorm.weight"]
        if description.qkv_bias:
            parts += [f"self_attn.{part}_proj.bias" for part in qkv]
        if description.output_bias:
            parts.append("self_attn.o_proj.bias")
        if description.mlp_bias:
            parts += [f"mlp.{part}_proj.bias" for part in [*gate_up, "down"]]
        if description.qk_norm:
            parts += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
        if description.sandwich_norms:
            parts += ["pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"]
        names += [prefix + part for part in parts]
    return names


def _shaped(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = tuple(tensor.shape)
    if tensor.dtype is torch.uint8:
        found = (found[0], elements_of_q4_1(found[1]))
    if found != shape:
        raise CheckpointError(f"tensor {name!r} has the shape {found}, but the model needs {shape}")
    return tensor


def _named(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")
