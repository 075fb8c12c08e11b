"""Conversations with tools as a prompt, also for templates that know nothing of tools."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from loire.base.errors import RequestError
from loire.text.chat_template import ChatTemplate
from loire.text.dialect import Dialect
from loire.text.tools.deepseek import KIMI
from loire.text.tools.definitions import Tool
from loire.text.tools.formats import GENERIC, LLAMA
from loire.text.tools.harmony import HARMONY

Message = Mapping[str, Any]
"""A message in OpenAI's form; the arguments of its tool_calls are JSON text."""


Ending = Literal["answer begins", "message ends", "message goes on"]
"""Where a prompt ends: where the assistant's next message begins, after the last message, or
within that."""
_ENDINGS: Mapping[Ending, Mapping[str, bool]] = {
    "answer begins": {},
    "message ends": {"add_generation_prompt": False},
    "message goes on": {"continue_final_message": True},
}


def render(
    template: ChatTemplate,
    dialect: Dialect,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
    ending: Ending = "answer begins",
) -> str:
    """The prompt of a conversation in which tools are offered, or were called before.

    Raises RequestError if the template refuses.
    """
    variables = {**(variables or {}), **_ENDINGS[ending]}
    if not dialect.knows_tools:
        return _render_generic(template, messages, tools, variables)
    offered = [tool.for_template() for tool in tools] or None
    if dialect.tool_format in (LLAMA, HARMONY):
        messages = _one_call_each(messages)
    if dialect.tool_format is HARMONY:
        messages = list(map(_thought_or_said, messages))
    if dialect.tool_format is KIMI:
        messages = _with_counted_ids(messages)
    if dialect.tool_format.id_length is not None:
        messages = _with_ids_of(dialect.tool_format.id_length, messages)
    with_objects = _with_objects(messages)
    try:
        return template.render(with_objects, tools=offered, **variables)
    except RequestError:
        # Some templates join the arguments to text, so they want them as text.
        if any(message.get("tool_calls") for message in messages):
            with suppress(RequestError):
                return template.render(messages, tools=offered, **variables)
        raise


def explain_tools(tools: Sequence[Tool]) -> str:
    """What a model is told that was not taught a form of calls by its template."""
    descriptions = "\n".join(
        json.dumps(tool.for_template()["function"], ensure_ascii=False) for tool in tools
    )
    example = GENERIC.before + '{"name": "<function>", "arguments": {"<parameter>": <value>}}'
    return (
        f"You can call functions. Each is described by a line of JSON:\n{descriptions}\n\n"
        f"To call one, write nothing but its name and arguments in this form, once per call:\n"
        f"{example}{GENERIC.after}\n"
        f"If no function helps, answer in plain words."
    )


def _render_generic(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    variables: Mapping[str, Any],
) -> str:
    plain = _without_calls(messages)
    if not tools:
        return template.render(plain, **variables)
    explained = explain_tools(tools)
    is_system = bool(plain) and plain[0]["role"] == "system"
    first = _joined(plain[0], explained) if is_system else {"role": "system", "content": explained}
    rest = plain[1:] if is_system else plain
    try:
        return template.render([first, *rest], **variables)
    except RequestError:
        # Some templates (Gemma's) refuse a system message: the user says it then.
        if not rest or rest[0]["role"] != "user":
            raise
        told = {**rest[0], "content": f"{first['content']}\n\n{_text(rest[0])}"}
        return template.render([told, *rest[1:]], **variables)


def _without_calls(messages: Sequence[Message]) -> list[Message]:
    """Calls as the text that the model would write, and their results as what the user says.

    In plain words: marks that it was not taught confuse a small model, which writes them as well.
    """
    plain: list[Message] = []
    names: dict[str, str] = {}
    """Of the functions called, by the calls' ids."""
    results: list[str] = []
    """That were not told yet."""
    for message in _with_objects(messages):
        if message["role"] == "tool":
            name = names.get(message.get("tool_call_id", ""), "that you called")
            results.append(f"The function {name} returned this:\n{_text(message)}")
            continue
        if results and message["role"] == "user":
            # Told together: many templates want the roles to alternate.
            message = {**message, "content": "\n".join([*results, "", _text(message)])}
        else:
            plain += _told(results)
        results = []
        if message.get("tool_calls"):
            functions = [call["function"] for call in message["tool_calls"]]
            names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
            message = {"role": "assistant", "content": _with_calls(_text(message), functions)}
        plain.append(message)
    return plain + _told(results)


def _told(results: Sequence[str]) -> list[Message]:
    """What functions returned, as one message of the user, if there is anything."""
    text = "\n".join([*results, "Answer my question with it."])
    return [{"role": "user", "content": text}] if results else []


def _with_calls(text: str, functions: Sequence[Mapping[str, Any]]) -> str:
    """A message with calls, as the model would write it."""
    calls = [
        json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
        for call in functions
    ]
    written = GENERIC.before + GENERIC.between.join(calls) + GENERIC.after
    return "\n".join(filter(None, (text, written)))


def _with_objects(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of calls as objects, as templates want to write them."""
    return [
        {**message, "tool_calls": [
            {**call, "function": {**call["function"], "arguments": _arguments(call)}}
            for call in message["tool_calls"]
        ]} if message.get("tool_calls") else message
        for message in messages
    ]  # fmt: skip


def _arguments(call: Message) -> dict[str, Any]:
    """The arguments of a past call as an object.

    An answer that was cut off leaves text that is none: that text is then what the call was given.
    """
    text = call["function"]["arguments"]
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"arguments": text}


def _with_ids_of(length: int, messages: Sequence[Message]) -> list[Message]:
    """The messages with ids of so many letters and digits: templates refuse what others gave."""

    def fitting(call_id: str) -> str:
        if len(call_id) == length and call_id.isascii() and call_id.isalnum():
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:length]

    fitted: list[Message] = []
    for message in messages:
        if message.get("tool_call_id"):
            message = {**message, "tool_call_id": fitting(message["tool_call_id"])}
        if message.get("tool_calls"):
            calls = [{**call, "id": fitting(call["id"])} for call in message["tool_calls"]]
            message = {**message, "tool_calls": calls}
        fitted.append(message)
    return fitted


def _with_counted_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with ids as Kimi writes calls: functions.NAME:0, counted over all of them."""
    ids: dict[str, str] = {}
    counted: list[Message] = []
    numbers = itertools.count()
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                ids[call["id"]] = f"functions.{call['function']['name']}:{next(numbers)}"
                calls.append({**call, "id": ids[call["id"]]})
            message = {**message, "tool_calls": calls}
        if message.get("tool_call_id") in ids:
            message = {**message, "tool_call_id": ids[message["tool_call_id"]]}
        counted.append(message)
    return counted


def _thought_or_said(message: Message) -> Message:
    """gpt-oss writes before a call what was thought or what was said, and refuses both."""
    thoughts = message.get("reasoning_content")
    if not (thoughts and message.get("tool_calls") and _text(message)):
        return message
    return {**message, "reasoning_content": f"{thoughts}\n\n{_text(message)}", "content": ""}


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Calls side by side as calls one after the other, each followed by its result."""
    split: list[Message] = []
    waiting: list[Message] = []
    """Calls whose results have not been seen."""
    for message in messages:
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            answered = [call for call in waiting if call["id"] == call_id]
            waiting = [call for call in waiting if call["id"] != call_id]
            split += map(_calling, answered)
        else:
            split += map(_calling, waiting)
            waiting = []
        if len(message.get("tool_calls") or ()) > 1:
            waiting = list(message["tool_calls"])
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            if not _text(message) and not message.get("reasoning_content"):
                continue
            message["content"] = _text(message)
        split.append(message)
    return split + list(map(_calling, waiting))


def _calling(call: Message) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _joined(message: Message, text: str) -> Message:
    return {**message, "content": f"{_text(message)}\n\n{text}"}


def _text(message: Message) -> str:
    return message.get("content") or ""
