"""Which weights stay in the blocks of their files, and which are rounded: loading and planning go
by the same rules."""

from collections.abc import Callable, Collection, Sequence

from loire.base.config import Quantization
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import WeightFormat
from loire.checkpoint.weights import Matrix, Role


def stays_as_stored(
    weight: Matrix,
    stored: Sequence[TensorInfo],
    keeps: Callable[[Collection[WeightFormat]], bool] = lambda formats: True,
) -> bool:
    """Whether blocks of the file are computed with as they are, in all parts of a matrix.

    stored: those parts. keeps: whether what computes does well with these formats in one product;
    the native kernels know all of them.
    """
    formats = [info.format for info in stored]
    in_blocks = any(fmt.block_elements > 1 for fmt in formats)
    halves_alike = not weight.gated or len(set(formats)) == 1
    return in_blocks and halves_alike and _keeps_order(weight, stored) and keeps(formats)


def rounded_to(
    weight: Matrix,
    stored: Sequence[TensorInfo],
    quantization: Quantization,
    role: Role | None = None,
) -> Quantization | None:
    """What a matrix is rounded to where quantization is asked for: nothing that is quantized is
    rounded a second time, even where it is expanded, and nothing that rows are looked up in.

    stored: its parts. role: other than its own.
    """
    role = role or weight.role
    if role in ("router", "embedding") or any(info.is_quantized for info in stored):
        return None
    # The distribution over tokens is what quantization hurts most: 8 bits at least.
    return "int8" if role == "head" else quantization


def _keeps_order(weight: Matrix, stored: Sequence[TensorInfo]) -> bool:
    """Whether blocks may have their inputs in another order: not where inputs are cut, or rows are
    looked up, or two halves that make one product differ."""
    orders = {None if info.quantized is None else info.quantized.order for info in stored}
    if orders == {None}:
        return True
    cut = weight.cut is not None and weight.cut.inputs != (0, weight.cut.whole_inputs)
    is_whole = not cut and not weight.chunks and weight.role != "embedding"
    return is_whole and not (weight.gated and len(orders) > 1)
