"""The structs that the library's functions are given; source/api/calls.h says what is in them.

load_library() checks that both agree.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p


class CallStruct(ctypes.Structure):
    """A struct whose fields are given by name, all of them: tests/kernels/test_native_sources.py
    looks at each place. (A check here would take as long as the call.)"""

    __slots__ = ()  # so that a name that is no field is an error


class PackCall(CallStruct):
    """What loire_pack is given."""

    __slots__ = ()
    _fields_ = [
        ("parts", c_void_p),
        ("part_outputs", c_void_p),
        ("row_strides", c_void_p),
        ("levels", c_void_p),
        ("bias", c_void_p),
        ("order", c_void_p),
        ("in_features", c_int64),
        ("num_parts", c_int32),
        ("type", c_int32),
        ("format", c_int32),
        ("gate", c_int32),
        ("gate_alpha", c_float),
        ("gate_limit", c_float),
    ]


class LinearCall(CallStruct):
    """What loire_linear is given."""

    __slots__ = ()
    _fields_ = [
        ("weight", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("adapters", c_void_p),
        ("tokens", c_int64),
        ("out_stride", c_int64),
        ("wide", c_int32),
    ]


class PackAdapterCall(CallStruct):
    """What loire_pack_adapter is given."""

    __slots__ = ()
    _fields_ = [
        ("weight", c_void_p),
        ("downs", c_void_p),
        ("ups", c_void_p),
        ("ranks", c_void_p),
        ("firsts", c_void_p),
        ("outputs", c_void_p),
        ("num_parts", c_int32),
    ]


class AdaptCall(CallStruct):
    """What loire_adapt is given."""

    __slots__ = ()
    _fields_ = [
        ("weight", c_void_p),
        ("adapter", c_void_p),
        ("number", c_int32),
    ]


class ExpertsCall(CallStruct):
    """What loire_experts is given."""

    __slots__ = ()
    _fields_ = [
        ("gate_ups", c_void_p),
        ("downs", c_void_p),
        ("x", c_void_p),
        ("logits", c_void_p),
        ("bias", c_void_p),
        ("expert_scales", c_void_p),
        ("beside", c_void_p),
        ("adapters", c_void_p),
        ("out", c_void_p),
        ("borders", c_void_p),
        ("ranks", c_void_p),
        ("tokens", c_int64),
        ("experts", c_int64),
        ("top_k", c_int64),
        ("groups", c_int64),
        ("chosen_groups", c_int64),
        ("chunks", c_int64),
        ("scores", c_int32),
        ("renormalise", c_int32),
        ("scale", c_float),
    ]


class HeadsCall(CallStruct):
    """What loire_heads is given."""

    __slots__ = ()
    _fields_ = [
        ("weights", c_void_p),
        ("adapters", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("x_stride", c_int64),
        ("x_head_stride", c_int64),
        ("out_stride", c_int64),
        ("out_head_stride", c_int64),
    ]


class NormCall(CallStruct):
    """What loire_norm is given."""

    __slots__ = ()
    _fields_ = [
        ("x", c_void_p),
        ("residual", c_void_p),
        ("weight", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("size", c_int64),
        ("type", c_int32),
        ("eps", c_float),
        ("scale", c_float),
    ]


class CombineCall(CallStruct):
    """What loire_combine is given."""

    __slots__ = ()
    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("size", c_int64),
        ("y_stride", c_int64),
        ("type", c_int32),
        ("wide", c_int32),
        ("gate", c_int32),
    ]


class EmbedCall(CallStruct):
    """What loire_embed is given."""

    __slots__ = ()
    _fields_ = [
        ("token_ids", c_void_p),
        ("table", c_void_p),
        ("packed", c_void_p),
        ("weight", c_void_p),
        ("residual", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("size", c_int64),
        ("vocab_size", c_int64),
        ("type", c_int32),
        ("table_scale", c_float),
        ("eps", c_float),
    ]


class DequantizeCall(CallStruct):
    """What loire_dequantize is given."""

    __slots__ = ()
    _fields_ = [
        ("blocks", c_void_p),
        ("out", c_void_p),
        ("elements", c_int64),
        ("type", c_int32),
        ("format", c_int32),
    ]


class ChooseCall(CallStruct):
    """What loire_choose is given."""

    __slots__ = ()
    _fields_ = [
        ("rows", c_void_p),
        ("temperature", c_void_p),
        ("min_p", c_void_p),
        ("top_k", c_void_p),
        ("top_p", c_void_p),
        ("draw", c_void_p),
        ("edit_starts", c_void_p),
        ("edit_tokens", c_void_p),
        ("edit_addends", c_void_p),
        ("places", c_void_p),
        ("counts", c_void_p),
        ("seen", c_void_p),
        ("repetition", c_void_p),
        ("frequency", c_void_p),
        ("presence", c_void_p),
        ("allowed", c_void_p),
        ("tokens", c_void_p),
        ("finite", c_void_p),
        ("count", c_int64),
        ("size", c_int64),
        ("num_lines", c_int64),
        ("words", c_int64),
    ]


class RotaryCall(CallStruct):
    """What loire_rotary is given."""

    __slots__ = ()
    _fields_ = [
        ("qkv", c_void_p),
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("query_weight", c_void_p),
        ("key_weight", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("half", c_int64),
        ("block_size", c_int64),
        ("block_stride", c_int64),
        ("scale_stride", c_int64),
        ("num_blocks", c_int64),
        ("num_positions", c_int64),
        ("type", c_int32),
        ("values_are_keys", c_int32),
        ("norm_values", c_int32),
        ("eps", c_float),
    ]


class LatentsCall(CallStruct):
    """What loire_latents is given."""

    __slots__ = ()
    _fields_ = [
        ("latents", c_void_p),
        ("turned", c_void_p),
        ("queries", c_void_p),
        ("kept", c_void_p),
        ("scales", c_void_p),
        ("weight", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("tokens", c_int64),
        ("heads", c_int64),
        ("rope_dim", c_int64),
        ("rank", c_int64),
        ("turned_stride", c_int64),
        ("block_size", c_int64),
        ("block_stride", c_int64),
        ("scale_stride", c_int64),
        ("num_blocks", c_int64),
        ("num_positions", c_int64),
        ("type", c_int32),
        ("eps", c_float),
    ]


class PlanCall(CallStruct):
    """What loire_plan is given."""

    __slots__ = ()
    _fields_ = [
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("rows", c_int64),
        ("table_size", c_int64),
        ("block_size", c_int64),
    ]


class AttendCall(CallStruct):
    """What loire_attend is given."""

    __slots__ = ()
    _fields_ = [
        ("plan", c_void_p),
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("sinks", c_void_p),
        ("out", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_stride", c_int64),
        ("scale_stride", c_int64),
        ("num_blocks", c_int64),
        ("window", c_int64),
        ("type", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
    ]


class DeltaNetCall(CallStruct):
    """What loire_delta_net is given."""

    __slots__ = ()
    _fields_ = [
        ("plan", c_void_p),
        ("qkv_gate", c_void_p),
        ("beta_alpha", c_void_p),
        ("filters", c_void_p),
        ("rate", c_void_p),
        ("decay_bias", c_void_p),
        ("norm", c_void_p),
        ("places", c_void_p),
        ("pages", c_void_p),
        ("mixed", c_void_p),
        ("gates", c_void_p),
        ("out", c_void_p),
        ("num_pages", c_int64),
        ("page_bytes", c_int64),
        ("tokens", c_int64),
        ("width", c_int64),
        ("key_heads", c_int64),
        ("value_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("type", c_int32),
        ("heads_in_turn", c_int32),
        ("eps", c_float),
    ]


class Mamba2Call(CallStruct):
    """What loire_mamba2 is given."""

    __slots__ = ()
    _fields_ = [
        ("plan", c_void_p),
        ("projected", c_void_p),
        ("filters", c_void_p),
        ("filter_bias", c_void_p),
        ("rate", c_void_p),
        ("step_bias", c_void_p),
        ("skip", c_void_p),
        ("norm", c_void_p),
        ("places", c_void_p),
        ("pages", c_void_p),
        ("mixed", c_void_p),
        ("steps", c_void_p),
        ("scanned", c_void_p),
        ("out", c_void_p),
        ("num_pages", c_int64),
        ("page_bytes", c_int64),
        ("tokens", c_int64),
        ("width", c_int64),
        ("heads", c_int64),
        ("groups", c_int64),
        ("head_dim", c_int64),
        ("state_dim", c_int64),
        ("type", c_int32),
        ("least_step", c_float),
        ("most_step", c_float),
        ("eps", c_float),
    ]


class ShortConvolutionCall(CallStruct):
    """What loire_short_convolution is given."""

    __slots__ = ()
    _fields_ = [
        ("plan", c_void_p),
        ("gated", c_void_p),
        ("filters", c_void_p),
        ("bias", c_void_p),
        ("places", c_void_p),
        ("pages", c_void_p),
        ("out", c_void_p),
        ("num_pages", c_int64),
        ("page_bytes", c_int64),
        ("tokens", c_int64),
        ("width", c_int64),
        ("size", c_int64),
        ("type", c_int32),
    ]


class GateCall(CallStruct):
    """What loire_gate is given."""

    __slots__ = ()
    _fields_ = [
        ("x", c_void_p),
        ("gate", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("size", c_int64),
        ("gate_size", c_int64),
        ("type", c_int32),
    ]


class JoinCall(CallStruct):
    """What loire_join is given."""

    __slots__ = ()
    _fields_ = [
        ("memory", c_void_p),
        ("bytes", c_int64),
        ("rank", c_int64),
        ("size", c_int64),
    ]


class SumProductsCall(CallStruct):
    """What loire_sum_products is given."""

    __slots__ = ()
    _fields_ = [
        ("weights", c_void_p),
        ("offsets", c_void_p),
        ("x", c_void_p),
        ("bias", c_void_p),
        ("adapters", c_void_p),
        ("ranks", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("chunks", c_int64),
        ("type", c_int32),
        ("wide", c_int32),
    ]


class SumPartsCall(CallStruct):
    """What loire_sum_parts is given."""

    __slots__ = ()
    _fields_ = [
        ("parts", c_void_p),
        ("ranks", c_void_p),
        ("out", c_void_p),
        ("count", c_int64),
        ("tokens", c_int64),
        ("size", c_int64),
        ("type", c_int32),
        ("wide", c_int32),
    ]


class GatherCall(CallStruct):
    """What loire_gather is given."""

    __slots__ = ()
    _fields_ = [
        ("ranks", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("borders", c_void_p),
        ("tokens", c_int64),
    ]


def layout() -> str:
    """How the structs lie in memory, as source/api/layout.cpp describes its own."""
    return "".join(_described(struct) for struct in CallStruct.__subclasses__())


_CODES = {c_void_p: "P", c_int32: "i", c_int64: "q", c_float: "f"}


def _described(struct: type[CallStruct]) -> str:
    fields = (
        f"{field[0]}:{_CODES[field[1]]}@{getattr(struct, field[0]).offset}"
        for field in struct._fields_
    )
    return f"{struct.__name__}{{ {' '.join(fields)} }}{ctypes.sizeof(struct)};"
