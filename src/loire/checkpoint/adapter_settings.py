"""What adapter_config.json says of an adapter in PEFT's format."""

import math
import re
from collections.abc import Mapping

from loire.base.errors import CheckpointError, UnsupportedModelError
from loire.checkpoint.fields import Fields

MOST_RANK = 512
_NOT_SUPPORTED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases of adapters",
    "fan_in_fan_out": "weights with inputs first",
    "modules_to_save": "weights that take the place of the model's",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "layers that are there several times",
    "alora_invocation_tokens": "activated LoRA",
    "megatron_config": "Megatron's layers",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings that change what an adapter computes -> what they are called."""
_CHANGES_BASE: Mapping[str, str] = {
    "pissa": "PiSSA",
    "corda": "CorDA",
    "olora": "OLoRA",
    "lora_ga": "LoRA-GA",
    "loftq": "LoftQ",
}
"""How values of init_lora_weights begin that take something off the model's own weights -> what
they are called. PEFT takes it off again when such an adapter is loaded."""


class AdapterSettings:
    """What adapter_config.json says of ranks and scales."""

    def __init__(self, fields: Fields) -> None:
        kind = fields.text("peft_type", "LORA")
        if kind != "LORA":
            raise UnsupportedModelError(
                f"{fields.source}: the adapter is of type {kind!r}; Loire reads LORA"
            )
        for key, name in _NOT_SUPPORTED.items():
            if fields.values.get(key):
                raise UnsupportedModelError(
                    f"{fields.source}: {key} is set, and adapters with {name} are not supported"
                )
        bias = fields.values.get("bias")
        if bias not in (None, "none"):
            raise UnsupportedModelError(
                f"{fields.source}: trained biases (bias {str(bias)[:40]!r}) are not supported"
            )
        _check_beginning(fields)
        self._source = fields.source
        self._parameters = _texts(fields, "target_parameters")
        self._unnamed = set(self._parameters)
        self._version = fields.text("peft_version", "0")
        self._rank = fields.integer("r", 8, high=MOST_RANK)
        self._alpha = fields.number("lora_alpha", 8, low=-1e6, high=1e6)
        self._root = fields.flag("use_rslora", False)
        self._ranks = self._pattern(fields, "rank_pattern")
        self._alphas = self._pattern(fields, "alpha_pattern")

    def named(self, module: str) -> str:
        """A module's name for patterns: that of its weight where that is a parameter by itself."""
        weight = f"{module}.weight"
        return weight if self._parameters and self.names(weight) else module

    def names(self, parameter: str) -> bool:
        """Whether target_parameters has a parameter, by the end of its name."""
        found = [name for name in self._parameters if f".{parameter}".endswith(f".{name}")]
        self._unnamed -= set(found)
        return bool(found)

    def check_parameters(self, weights: str) -> None:
        """Raises CheckpointError if target_parameters has one that names() was not asked for."""
        for name in sorted(self._unnamed):
            raise CheckpointError(
                f"{self._source}: target_parameters names {name[:80]!r}, of which {weights} has "
                f"nothing for this model"
            )

    def crosses_experts(self, module: str, *, inputs_first: bool) -> bool:
        """Which way round the halves of experts with as many inputs as outputs are, which their
        shapes do not tell. inputs_first: whether the model has the experts' inputs first."""
        match = re.match(r"(\d+)\.(\d+)", self._version)
        version = (int(match[1]), int(match[2])) if match else (0, 0)
        if inputs_first and version == (0, 19):
            raise UnsupportedModelError(
                f"{self._source}: PEFT 0.19 wrote the halves of {module} either way round; save "
                f"the adapter again with PEFT 0.20 or later"
            )
        return version < (0, 20) and not inputs_first

    def rank(self, module: str) -> int:
        """Of a module."""
        return int(_matching(self._ranks, module, self._rank))

    def scale(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, "rsLoRA")."""
        alpha, rank = _matching(self._alphas, module, self._alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self._root else rank)

    def _pattern(self, fields: Fields, key: str) -> Mapping[str, float]:
        values = fields.values.get(key) or {}
        if not isinstance(values, Mapping):
            raise fields.wrong(key, values, "an object")
        own = Fields(values, f"{fields.source}, {key}")
        found: dict[str, float] = {}
        for pattern in values:
            # PEFT takes them as regular expressions; those that it writes are names.
            name = str(pattern).replace("\\.", ".").removeprefix("^").removesuffix("$")
            name = name.removeprefix(".*.")
            if not re.fullmatch(r"[\w.]+", name):
                raise UnsupportedModelError(
                    f"{own.source}: {str(pattern)[:80]!r} is no name of modules; regular "
                    f"expressions are not supported"
                )
            if key == "rank_pattern":
                found[name] = own.integer(pattern, high=MOST_RANK)
            else:
                found[name] = own.number(pattern, low=-1e6, high=1e6)
        return found


def _check_beginning(fields: Fields) -> None:
    """Raises UnsupportedModelError for an adapter that is to be added to other weights than the
    model's."""
    begun = fields.values.get("init_lora_weights")
    if not isinstance(begun, str):
        return
    for start, name in _CHANGES_BASE.items():
        if begun.lower().startswith(start):
            raise UnsupportedModelError(
                f"{fields.source}: the adapter was begun by {name} (init_lora_weights "
                f"{begun[:40]!r}), which changes the model's own weights: save it again with "
                f"path_initial_model_for_weight_conversion, as an adapter of the unchanged model, "
                f"or serve it with the changed one and init_lora_weights true"
            )


def _matching(values: Mapping[str, float], module: str, otherwise: float) -> float:
    """Of the first name that the module's ends with."""
    for name, value in values.items():
        if f".{module}".endswith(f".{name}"):
            return value
    return otherwise


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    found = fields.values.get(key) or ()
    if not isinstance(found, list | tuple) or not all(isinstance(x, str) and x for x in found):
        raise fields.wrong(key, found, "a list of names")
    return tuple(found)
