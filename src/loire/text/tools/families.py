"""Which form of calls a chat template teaches, and what reads it."""

import logging
import re
from collections.abc import Callable, Sequence

from loire.text.tools.blocks import BlockParser
from loire.text.tools.deepseek import DEEPSEEK, KIMI
from loire.text.tools.definitions import Tool
from loire.text.tools.dsml import DSML, DSML_TOOLS
from loire.text.tools.formats import (
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    NEMOTRON,
    PHI,
    ToolFormat,
)
from loire.text.tools.gemma import GEMMA
from loire.text.tools.glm import GLM
from loire.text.tools.harmony import HARMONY
from loire.text.tools.minimax import MINIMAX
from loire.text.tools.parser import ToolParser, new_call_id
from loire.text.tools.pythonic import LFM2, LLAMA_PYTHONIC
from loire.text.tools.qwen_coder import QWEN_CODER

log = logging.getLogger("loire.text")

CallParser = ToolParser | BlockParser

_NAME_AFTER_MARK = re.compile(r"\[TOOL_CALLS\]['\"]\s*[+~]\s*\w+[.\[]['\"]?(?:function|name)")
_BY_MARKS: Sequence[tuple[ToolFormat, tuple[str, ...]]] = (
    (HARMONY, ("<|channel|>", "<|message|>")),
    (GEMMA, ("<|tool_call>", "<tool_call|>")),
    (MINIMAX, ("<minimax:tool_call>",)),
    (DSML_TOOLS, ("｜DSML｜", "tool_calls>")),
    (DSML, ("｜DSML｜",)),
    (DEEPSEEK, ("<｜tool▁call▁begin｜>",)),
    (KIMI, ("<|tool_call_begin|>",)),
    (KIMI, ("tool_declare<|im_middle|>",)),
    (QWEN_CODER, ("<tool_call>", "<function=")),
    (GLM, ("<tool_call>", "<arg_key>")),
    (NEMOTRON, ("<TOOLCALL>",)),
    (PHI, ("<|tool_call|>", "<|/tool_call|>")),
    (GRANITE, ("<|tool_call|>",)),
    (LFM2, ("<|tool_call_start|>",)),
    (LFM2, ("<|tool_list_start|>",)),
    (HERMES, ("<tool_call>",)),
    (LLAMA_PYTHONIC, ("<|python_start|>",)),
    (LLAMA_PYTHONIC, ("[func_name1(",)),
)
"""The first whose texts are all in a template is its form."""


def choose_format(template: str) -> ToolFormat:
    """The form that a chat template's source teaches; GENERIC if it is none of those known."""
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template or _NAME_AFTER_MARK.search(template):
            return MISTRAL_NAMED
        return MISTRAL
    for tool_format, marks in _BY_MARKS:
        if all(mark in template for mark in marks):
            return tool_format
    if '"parameters": ' in template and ("<|python_tag|>" in template or "ipython" in template):
        return LLAMA
    log.warning(
        "the chat template reads tools, but teaches no form of calls that is known: they are "
        "explained in the system prompt, and calls are expected as JSON between <tool_call> tags"
    )
    return GENERIC


def call_parser(
    tool_format: ToolFormat,
    tools: Sequence[Tool],
    *,
    max_calls: int | None = None,
    new_id: Callable[[], str] | None = None,
) -> CallParser:
    """What reads the calls in one answer. tools: those that may be called; new_id: makes ids."""
    if tool_format.block is None:
        names = {tool.name for tool in tools}
        return ToolParser(tool_format, names, max_calls=max_calls, new_id=new_id)
    return BlockParser(
        tool_format.opening,
        tool_format.closing,
        tool_format.block,
        {tool.name: tool.parameters for tool in tools},
        bare=tool_format.bare,
        max_calls=max_calls,
        new_id=new_id or (lambda: new_call_id(tool_format.id_length)),
    )
