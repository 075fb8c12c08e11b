"""Loire: an LLM inference and serving engine.

`LLM` runs the engine in this process, `AsyncLLM` is its twin for servers. Importing this package
is cheap: nothing heavy is loaded before one of its names is used.
"""

__version__ = "0.1.0"

# typing's own would be an import, and `python -m loire` runs this file with the working directory
# still among the places of modules.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from loire.api import LLM, AsyncLLM
    from loire.base.errors import LoireError
    from loire.base.lora import LoRARequest
    from loire.base.outputs import CompletionOutput, RequestOutput
    from loire.base.sampling import SamplingParams

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "LoRARequest",
    "LoireError",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "LLM": "loire.api",
    "AsyncLLM": "loire.api",
    "CompletionOutput": "loire.base.outputs",
    "LoRARequest": "loire.base.lora",
    "LoireError": "loire.base.errors",
    "RequestOutput": "loire.base.outputs",
    "SamplingParams": "loire.base.sampling",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'loire' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
