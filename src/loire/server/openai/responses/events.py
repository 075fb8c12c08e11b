"""A response's output, item by item, and the events that tell it while it comes."""

import json
import uuid
from collections.abc import Iterable, Set
from typing import Any

from loire.server.openai.custom_tools import CustomCalls, CustomCallStarted, CustomInput
from loire.server.web.sse import event
from loire.text.tools.events import (
    AnswerEvent,
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    ContentDelta,
    ReasoningDelta,
)


class ResponseOutput:
    """Puts events of an answer together as items, each closed before the next one begins."""

    def __init__(self, custom_names: Set[str] = frozenset()) -> None:
        self._custom = CustomCalls(custom_names)
        self.items: list[dict[str, Any]] = []
        self._open = False
        self._sequence = 0

    def tell(self, kind: str, **fields: Any) -> bytes:
        """An event with its number in the stream."""
        numbered = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event(json.dumps(numbered, ensure_ascii=False), kind)

    def add(self, news: Iterable[AnswerEvent]) -> list[bytes]:
        """Enter what is new; the events that tell it."""
        told: list[bytes] = []
        for item in self._custom.read(news):
            match item:
                case ReasoningDelta(text):
                    told += self._text("reasoning", "reasoning_text", text)
                case ContentDelta(text):
                    told += self._text("message", "output_text", text)
                case CallStarted(_, call_id, name):
                    told += self._begin(
                        {
                            "type": "function_call",
                            "id": _new_id("fc"),
                            "call_id": call_id,
                            "name": name,
                            "arguments": "",
                            "status": "in_progress",
                        }
                    )
                case ArgumentsDelta(_, text):
                    self.items[-1]["arguments"] += text
                    told.append(self._about("response.function_call_arguments.delta", delta=text))
                case CustomCallStarted(_, call_id, name):
                    told += self._begin(
                        {
                            "type": "custom_tool_call",
                            "id": _new_id("ctc"),
                            "call_id": call_id,
                            "name": name,
                            "input": "",
                            "status": "in_progress",
                        }
                    )
                case CustomInput(_, text):
                    self.items[-1]["input"] = text
                    told.append(self._about("response.custom_tool_call_input.delta", delta=text))
                case CallEnded():
                    told += self._end("completed")
                case CallBroken():
                    told += self._end("incomplete")
        return told

    def close(self, *, complete: bool) -> list[bytes]:
        """The end of the answer. complete: it was not cut off."""
        told = [] if self.items else self._text("message", "output_text", "")
        return [*told, *self._end("completed" if complete else "incomplete")]

    def _text(self, kind: str, part_kind: str, text: str) -> list[bytes]:
        told: list[bytes] = []
        if not (self._open and self.items[-1]["type"] == kind):
            item: dict[str, Any] = {"type": kind, "id": _new_id("msg"), "content": []}
            if kind == "message":
                item["role"] = "assistant"
            else:
                item["summary"] = []
            told += self._begin({**item, "status": "in_progress"})
            part: dict[str, Any] = {"type": part_kind, "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            told.append(self._about("response.content_part.added", content_index=0, part=part))
            self.items[-1]["content"].append(part)
        self.items[-1]["content"][0]["text"] += text
        extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        name = f"response.{part_kind}.delta"
        if text:
            told.append(self._about(name, content_index=0, delta=text, **extra))
        return told

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        ended = self._end("completed")
        # A copy, as the item goes on growing.
        self.items.append(json.loads(json.dumps(item)))
        self._open = True
        added = self.tell("response.output_item.added", output_index=len(self.items) - 1, item=item)
        return [*ended, added]

    def _end(self, status: str) -> list[bytes]:
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        item["status"] = status
        told = []
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            told.append(self._about("response.function_call_arguments.done", **done))
        elif item["type"] == "custom_tool_call":
            done = {"input": item["input"]}
            told.append(self._about("response.custom_tool_call_input.done", **done))
        else:
            [part] = item["content"]
            extra: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            name = f"response.{part['type']}.done"
            told.append(self._about(name, content_index=0, text=part["text"], **extra))
            told.append(self._about("response.content_part.done", content_index=0, part=part))
        index = len(self.items) - 1
        return [*told, self.tell("response.output_item.done", output_index=index, item=item)]

    def _about(self, kind: str, **fields: Any) -> bytes:
        index = len(self.items) - 1
        return self.tell(kind, item_id=self.items[-1]["id"], output_index=index, **fields)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
