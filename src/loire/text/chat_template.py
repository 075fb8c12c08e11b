"""Chat templates: the model's own Jinja sources, rendered in a process of their own.

A template is foreign code, so it runs under limits of the operating system (template_process.py);
it renders what transformers renders, as it is given the same names.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from loire.base.errors import RequestError
from loire.text.template_client import TemplateClient

DEFAULT, TOOL_USE, RAG = "default", "tool_use", "rag"
_CONTINUED = "\N{OBJECT REPLACEMENT CHARACTER}loire-continues-here"
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message's reasoning comes. Templates read the first, or, as gpt-oss, the
second."""


class ChatTemplate:
    """The templates of a model. special_tokens: bos_token and the like, by the names they use.

    sources: one template, or several by name: `default`; `tool_use`, for conversations with tools;
    `rag`, for those with documents. Raises CheckpointError if one is no valid Jinja, or cannot be
    compiled within the limits.

    variables: names that the templates read beside the messages, such as tools or enable_thinking.
    """

    def __init__(self, sources: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.sources = {DEFAULT: sources} if isinstance(sources, str) else dict(sources)
        if DEFAULT not in self.sources:
            self.sources[DEFAULT] = next(iter(self.sources.values()))
        self._client = TemplateClient(self.sources, special_tokens)
        own = {*special_tokens, "messages", "add_generation_prompt"}
        self.variables = self._client.variables() - own

    @property
    def source(self) -> str:
        """All of the templates' text."""
        return "\n".join(dict.fromkeys(self.sources.values()))

    def close(self) -> None:
        """End the templates' process; rendering would start another."""
        self._client.close()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Messages are {"role", "content", ...}; content is text, or a list of parts of which only
        text is taken: in whichever of both forms the template reads. continue_final_message: the
        prompt ends within the last message. Raises RequestError with the template's own words if
        it refuses, and if it does not end within the limits.
        """
        if not messages:
            raise RequestError("messages is empty: a conversation needs one", param="messages")
        if continue_final_message:
            messages = _marked(messages)
        context = {
            **variables,
            "messages": [self._message(index, message) for index, message in enumerate(messages)],
            "tools": list(tools) if tools is not None else None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        rendered = self._client.ask("render", self._name(context), context)
        return _up_to_mark(rendered) if continue_final_message else rendered

    def _name(self, context: Mapping[str, Any]) -> str:
        if context["tools"] and TOOL_USE in self.sources:
            return TOOL_USE
        return RAG if context.get("documents") and RAG in self.sources else DEFAULT

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as the template reads it."""
        role = message.get("role")
        if not isinstance(role, str):
            raise RequestError(f"messages[{index}] has no role", param=f"messages[{index}].role")
        given = {key: value for key, value in message.items() if value is not None}
        reasoning = next((given[name] for name in _REASONING if name in given), None)
        if reasoning is not None:
            given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
        if "content" in given:
            given["content"] = self._content(index, role, given["content"])
        return given

    def _content(self, index: int, role: str, content: Any) -> str | list[dict[str, str]]:
        param = f"messages[{index}].content"
        if isinstance(content, str):
            parts_only = role not in self._forms["text"] and role in self._forms["parts"]
            return [{"type": "text", "text": content}] if parts_only else content
        texts = _texts(param, content)
        if role in self._forms["parts"]:
            return [{"type": "text", "text": text} for text in texts]
        return "".join(texts)

    @cached_property
    def _forms(self) -> Mapping[str, Sequence[str]]:
        """The roles whose content may be a text, and those whose content may be parts."""
        try:
            forms: dict[str, list[str]] = json.loads(self._client.ask("forms"))
        except RequestError:  # not even a short conversation comes to its end
            return {"text": [], "parts": []}
        return forms


def _texts(param: str, content: Any) -> list[str]:
    """The texts of a list of parts."""
    if not isinstance(content, Sequence):
        raise RequestError(f"{param} must be text or a list of text parts", param=param)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{param} has a part of type {kind!r}, but this model reads text only", param=param
            )
        texts.append(part["text"])
    return texts


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with a mark at the end of the last one's text."""
    *before, last = messages
    content = last.get("content")
    if content is not None and not isinstance(content, str):
        content = "".join(_texts(f"messages[{len(before)}].content", content))
    if not content:
        raise RequestError(
            "continue_final_message needs a last message with text, but it has none",
            param="continue_final_message",
        )
    return [*before, {**last, "content": content + _CONTINUED}]


def _up_to_mark(rendered: str) -> str:
    """The prompt up to the mark, and without the whitespace that a template took from before it."""
    place = rendered.rfind(_CONTINUED)
    if place < 0:
        raise RequestError(
            "continue_final_message: the model's chat template does not write the last message's "
            "text as it is",
            param="continue_final_message",
        )
    return rendered[:place]
