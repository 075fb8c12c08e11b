"""A first agent: it converses, calls two tools, and remembers, also after it was restarted.

    loire serve smollm2                                    # in another terminal
    python examples/agent.py --tool-choice required        # explained in docs/agent.md

It needs the official client and nothing else (pip install openai), so it talks to any server that
speaks OpenAI's API.
"""

import argparse
import ast
import json
import operator
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from openai import OpenAI

INSTRUCTIONS = "You are a helpful assistant. Answer in one short sentence."
MAX_STEPS = 4
"""Requests to the model for one question: an agent that may call tools forever sometimes does."""
MAX_TURNS = 4
"""Questions and answers that the model is shown again. A large model can follow more of them."""

# --- The tools: functions from text to text, and what the model is told of them. ---

OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ZONES = {
    "Nantes": "Europe/Paris",
    "London": "Europe/London",
    "New York": "America/New_York",
    "Tokyo": "Asia/Tokyo",
}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression. Never eval(): a model's text is a stranger's text."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(int() | float() as number):
                return number
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
                return OPERATORS[type(sign)](value(left), value(right))
        raise ValueError(f"cannot compute {ast.unparse(node)}")

    return f"{expression} = {value(ast.parse(expression, mode='eval').body):.10g}"


def time_in(city: str) -> str:
    """The date and time in a city."""
    now = datetime.now(ZoneInfo(ZONES[city]))
    return f"It is {now:%H:%M on %A, %d %B %Y} in {city}."


TOOLS: dict[str, Callable[..., str]] = {"calculate": calculate, "time_in": time_in}


def describe(name: str, description: str, **properties: Any) -> dict[str, Any]:
    """A tool in the form of OpenAI's API. strict: its arguments always follow the schema."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


# The narrower a schema, the less a small model can get wrong.
NUMBER = r"-?[0-9]{1,6}(\.[0-9]{1,2})?"
DESCRIPTIONS: Any = [
    describe(
        "calculate",
        "Compute numbers, for example 12 * 3.5 + 4.",
        expression={"type": "string", "pattern": f"^{NUMBER}( [-+*/] {NUMBER}){{1,3}}$"},
    ),
    describe(
        "time_in",
        "The date and time in a city now.",
        city={"type": "string", "enum": list(ZONES)},
    ),
]


def run_tool(name: str, arguments: str) -> str:
    """What a call returns. A mistake is told to the model, which may try again."""
    try:
        return TOOLS[name](**json.loads(arguments))
    except (ArithmeticError, KeyError, SyntaxError, TypeError, ValueError) as error:
        return f"error: {error!r}"


# --- The memory: the conversation, kept in a file. ---


class Memory:
    """Questions and their answers. Calls are not kept: they have served once answered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turns: list[tuple[str, str]] = json.loads(path.read_text()) if path.exists() else []

    def add(self, question: str, answer: str) -> None:
        """Remember a turn of the conversation."""
        self._turns.append((question, answer))
        self._path.write_text(json.dumps(self._turns, ensure_ascii=False, indent=1))

    def messages(self) -> list[dict[str, Any]]:
        """The latest turns, as the model is shown them."""
        return [
            {"role": role, "content": text}
            for turn in self._turns[-MAX_TURNS:]
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]


# --- The agent: ask the model, do what it calls for, tell it what came of it, ask again. ---


class Agent:
    """Answers questions. tool_choice: whether the first reply to a question must be a call."""

    def __init__(
        self, client: OpenAI, model: str, memory: Memory, *, tool_choice: str = "auto"
    ) -> None:
        self._client = client
        self._model = model
        self._memory = memory
        self._tool_choice = tool_choice

    def answer(self, question: str) -> Iterator[str]:
        """What happens until the question is answered, line by line."""
        turn: list[Any] = [{"role": "user", "content": question}]
        for choice in (self._tool_choice, *["auto"] * (MAX_STEPS - 2), "none"):
            reply = self._ask(turn, choice)
            if reply.finish_reason != "tool_calls":
                text = reply.message.content or "(no answer within the limit of tokens)"
                self._memory.add(question, text)
                yield text
                return
            turn.append(reply.message)
            for call in reply.message.tool_calls:
                result = run_tool(call.function.name, call.function.arguments)
                yield f"  [{call.function.name} {call.function.arguments} -> {result}]"
                turn.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def _ask(self, turn: list[Any], tool_choice: Any) -> Any:
        instructions = {"role": "system", "content": INSTRUCTIONS}
        completion = self._client.chat.completions.create(
            model=self._model,
            messages=[instructions, *self._memory.messages(), *turn],
            tools=DESCRIPTIONS,
            tool_choice=tool_choice,
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=200,
        )
        return completion.choices[0]


def main() -> None:
    """A conversation on the terminal; an empty line ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--memory", type=Path, default=Path("agent-memory.json"))
    parser.add_argument("--tool-choice", choices=["auto", "required"], default="auto")
    options = parser.parse_args()
    # A server that asks for a key: OPENAI_API_KEY, as the client has it.
    client = OpenAI(base_url=options.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    agent = Agent(client, options.model, Memory(options.memory), tool_choice=options.tool_choice)
    while question := input("> ").strip():
        for line in agent.answer(question):
            print(line, flush=True)


if __name__ == "__main__":
    main()
