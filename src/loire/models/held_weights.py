"""In what a model's matrices are held, in words: beside what the file has them in."""

from collections import Counter
from collections.abc import Iterable, Mapping

from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import held_as
from loire.checkpoint.weights import Matrix
from loire.models.layer_loader import WeightReader

_ROUNDED_BITS = {"int8": 8.0, "int4": 4.5}
_MOST_NAMED = 4


def held_in_words(
    reader: WeightReader, tensors: Mapping[str, TensorInfo], matrices: Iterable[Matrix]
) -> str:
    """Such as "bfloat16", or "Q4_K in 4.6 bits 83%, Q6_K in 6.6 bits 17%", most first.

    What is expanded, because nobody computes with it as it is, comes with what the file has.
    matrices: all of a model's; a tied head counts once.
    """
    dtype = str(reader.dtype).removeprefix("torch.")
    found: Counter[str] = Counter()
    for weight in matrices:
        kept = reader.stays_as_stored(weight)
        rounding = reader.rounding(weight)
        for name in weight.stored_weights(tensors):
            found[_way(tensors[name], kept, rounding, dtype)] += tensors[name].num_elements
    total = max(found.total(), 1)
    ways = found.most_common()
    if len(ways) == 1:
        return ways[0][0]
    shown = [f"{way} {count / total:.0%}" for way, count in ways[:_MOST_NAMED]]
    rest = sum(count for _, count in ways[_MOST_NAMED:])
    return ", ".join(shown) + (f", others {rest / total:.0%}" if rest else "")


def _way(info: TensorInfo, kept: bool, rounding: str | None, dtype: str) -> str:
    if kept and info.format.block_elements > 1:
        return f"{info.format.name} in {held_as(info.format).bits_per_element:.1f} bits"
    if rounding is not None:
        return f"{rounding} in {_ROUNDED_BITS[rounding]:.1f} bits"
    return f"{info.format.name} expanded to {dtype}" if info.is_quantized else dtype
