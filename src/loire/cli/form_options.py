"""Flags that hold an answer to a form, or offer tools. They are the words of the Python API."""

import argparse
import json
from pathlib import Path
from typing import Any

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs


def add_form_options(parser: argparse.ArgumentParser) -> None:
    """The flags; one kind of form at a time."""
    group = parser.add_argument_group("form of the answer").add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema", metavar="FILE|TEXT", help="JSON that a schema accepts: a file, or {...}"
    )
    group.add_argument("--regex", help="a text that matches this from beginning to end")
    group.add_argument(
        "--choice", metavar="TEXT", help="one of these texts (repeatable)", action="append"
    )


def add_tool_options(parser: argparse.ArgumentParser) -> None:
    """The flags of tools."""
    group = parser.add_argument_group("tools")
    group.add_argument(
        "--tools", metavar="FILE", help="functions that the model may call: a JSON list as OpenAI's"
    )
    group.add_argument(
        "--tool-choice",
        default="auto",
        metavar="auto|none|required|NAME",
        help="whether, or which of them, it must call [auto]",
    )


def tool_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of LLM.stream from the flags. Raises RequestError."""
    if args.tools is None:
        return {}
    choice = args.tool_choice
    if choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": choice}}
    try:
        tools = json.loads(Path(args.tools).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"--tools {args.tools} cannot be read: {error}", param="tools"
        ) from error
    return {"tools": tools, "tool_choice": choice}


def structured_outputs(args: argparse.Namespace) -> StructuredOutputs | None:
    """The form that was asked for, if any.

    Raises RequestError if it is empty, or in a file that cannot be read.
    """
    if args.json_schema is not None:
        return StructuredOutputs(json=_schema(args.json_schema))
    if args.regex is not None:
        return StructuredOutputs(regex=args.regex)
    if args.choice is not None:
        return StructuredOutputs(choice=tuple(args.choice))
    return None


def _schema(file_or_text: str) -> str:
    if file_or_text.lstrip().startswith("{"):
        return file_or_text
    try:
        return Path(file_or_text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--json-schema {file_or_text} cannot be read: {error}. Give a file, or a schema that "
            f"begins with {{",
            param="json_schema",
        ) from error
