"""Real models to hold a plan against: what KV costs per token at a given size.

Shapes are those of the models' own config.json; OPT-13B is the example of Kwon et al. 2023
("PagedAttention", section 3): 800 KB per token, a KB there being 1,024 bytes.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Parameters and the shape of the KV cache of a published model."""

    name: str
    num_parameters: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def grouped(self) -> bool:
        """Whether query heads share KV heads (GQA, Ainslie et al. 2023)."""
        return self.num_kv_heads < self.num_heads

    def kv_bytes_per_token(self, element_bytes: float = 2) -> int:
        """Keys and values of one token over all layers."""
        return round(2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes)


KNOWN_MODELS = (
    KnownModel("OPT-1.3B", 1_315_758_080, 24, 32, 32, 64),
    KnownModel("OPT-6.7B", 6_658_473_984, 32, 32, 32, 128),
    KnownModel("Llama-2-7B", 6_738_415_616, 32, 32, 32, 128),
    KnownModel("OPT-13B", 12_853_473_280, 40, 40, 40, 128),
    KnownModel("OPT-30B", 29_974_540_288, 48, 56, 56, 128),
    KnownModel("OPT-66B", 65_719_701_504, 64, 72, 72, 128),
    KnownModel("OPT-175B", 174_604_468_224, 96, 96, 96, 128),
    KnownModel("SmolLM2-135M", 134_515_008, 30, 9, 3, 64),
    KnownModel("Qwen2.5-0.5B", 494_032_768, 24, 14, 2, 64),
    KnownModel("Llama-3.2-1B", 1_235_814_400, 16, 32, 8, 64),
    KnownModel("Llama-3.2-3B", 3_212_749_824, 28, 24, 8, 128),
    KnownModel("Llama-3.1-8B", 8_030_261_248, 32, 32, 8, 128),
    KnownModel("Qwen3-14B", 14_768_307_200, 40, 40, 8, 128),
    KnownModel("Qwen2.5-32B", 32_763_876_352, 64, 40, 8, 128),
    KnownModel("Llama-3.1-70B", 70_553_706_496, 80, 64, 8, 128),
    KnownModel("Llama-3.1-405B", 405_853_388_800, 126, 128, 8, 128),
)


def similar_models(num_parameters: int) -> tuple[KnownModel, ...]:
    """The model nearest in size with a KV head per query head, and the nearest with fewer.

    A kind that has none within a factor of three is left out.
    """

    def distance(model: KnownModel) -> float:
        return abs(math.log(model.num_parameters / num_parameters))

    found = []
    for grouped in (False, True):
        nearest = min((m for m in KNOWN_MODELS if m.grouped is grouped), key=distance)
        if distance(nearest) <= math.log(3):
            found.append(nearest)
    return tuple(found)
