"""Qwen3-Coder, Qwen3.5 and Nemotron 3: <tool_call><function=...><parameter=...>.

https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct (chat_template.jinja)
"""

import re

from loire.text.tools.blocks import Block
from loire.text.tools.formats import ToolFormat
from loire.text.tools.tagged import Tags

_TAGS = Tags(
    head="<function=NAME>\n",
    key="<parameter=KEY>\n",
    end="\n</parameter>\n",
    tail="</function>",
    call=re.compile(
        r"<function=\s*([^>\s]+)\s*>(.*?)</function>(?=\s*(?:<function=|$))", re.DOTALL
    ),
    parameter=re.compile(
        r"<parameter=\s*([^>\s]+)\s*>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|$))", re.DOTALL
    ),
)

QWEN_CODER = ToolFormat(
    name="qwen coder",
    opening="<tool_call>",
    closing="</tool_call>",
    before="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    after="\n</tool_call>",
    block=Block(read=_TAGS.read, write=_TAGS.write),
)
