"""GLM 4.5 and later: <tool_call>name, then keys and values in tags.

https://huggingface.co/zai-org/GLM-4.6 (chat_template.jinja)
"""

import re

from loire.text.tools.blocks import Block
from loire.text.tools.formats import ToolFormat
from loire.text.tools.tagged import Tags

_TAGS = Tags(
    head="NAME\n",
    key="<arg_key>KEY</arg_key>\n<arg_value>",
    end="</arg_value>\n",
    tail="",
    call=re.compile(r"\A\s*([^\s<]+)\s*(.*)\Z", re.DOTALL),
    parameter=re.compile(
        r"<arg_key>\s*(.*?)\s*</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|$))",
        re.DOTALL,
    ),
)

GLM = ToolFormat(
    name="glm",
    opening="<tool_call>",
    closing="</tool_call>",
    before="<tool_call>",
    between="</tool_call>\n<tool_call>",
    after="</tool_call>",
    block=Block(
        read=_TAGS.read,
        write=_TAGS.write,
        tokens=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
)
