"""The dtypes that the native kernels compute in, and their numbers in the library."""

import torch

from loire.base.errors import ConfigError

TYPES = {torch.float32: 0, torch.bfloat16: 1}


def type_number(dtype: torch.dtype) -> int:
    """Its number in the library. Raises ConfigError if the kernels do not compute in it."""
    try:
        return TYPES[dtype]
    except KeyError:
        raise ConfigError(
            f"the native kernels compute in bfloat16 or float32, not in {dtype}; "
            f"choose another dtype or kernels"
        ) from None
