"""What the Python API takes for prompts, conversations, and what goes with each: one or many."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from loire.base.errors import RequestError
from loire.base.lora import LoRARequest
from loire.base.sampling import SamplingParams
from loire.engine.frontend import Message

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": [...]}, optionally with
"cache_salt"."""

Messages = Sequence[Message]
"""A conversation."""

Lora = LoRARequest | str | Sequence[LoRARequest | str | None] | None
"""An adapter for all prompts, or one or none for each; a text is a name of load_adapter()."""


def content_and_salt(prompt: Prompt) -> tuple[str | Sequence[int], str]:
    """The prompt proper, and its cache salt. Raises RequestError for other keys than those."""
    if not isinstance(prompt, Mapping):
        return prompt, ""
    unknown = set(prompt) - {"prompt", "prompt_token_ids", "cache_salt"}
    if unknown or ("prompt" in prompt) == ("prompt_token_ids" in prompt):
        raise RequestError(
            f"a prompt is text, a list of token ids, or a dictionary with either 'prompt' or "
            f"'prompt_token_ids' (and 'cache_salt'), but its keys are {sorted(prompt)}",
            param="prompt",
        )
    content = prompt["prompt"] if "prompt" in prompt else prompt["prompt_token_ids"]
    return content, prompt.get("cache_salt", "")


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as a list of prompts."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def as_conversations(messages: Messages | Sequence[Messages]) -> Sequence[Messages]:
    """One conversation, or several, as a list of conversations."""
    if not messages or isinstance(messages[0], Mapping):
        return [cast("Messages", messages)]
    return cast("Sequence[Messages]", messages)


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is a list of chat messages."""
    if isinstance(prompt, str | Mapping) or not isinstance(prompt, Sequence):
        return False
    return bool(prompt) and isinstance(prompt[0], Mapping) and "role" in prompt[0]


def spread_params(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams]:
    """Those of each of so many prompts. Raises RequestError if there are more or fewer."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(
            f"there are {count} prompts, but {len(params)} sampling parameters",
            param="sampling_params",
        )
    return params


def spread_lora(lora: Lora, count: int) -> Sequence[LoRARequest | str | None]:
    """The adapters of so many prompts. Raises RequestError if there are more or fewer."""
    if lora is None or isinstance(lora, LoRARequest | str):
        return [lora] * count
    if len(lora) != count:
        raise RequestError(
            f"there are {count} prompts, but {len(lora)} adapters", param="lora_request"
        )
    return lora
