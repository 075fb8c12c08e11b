"""MiniMax M2: <minimax:tool_call> with an <invoke> for each call.

https://huggingface.co/MiniMaxAI/MiniMax-M2 (chat_template.jinja)
"""

import re

from loire.text.tools.blocks import Block
from loire.text.tools.formats import ToolFormat
from loire.text.tools.tagged import Tags

_TAGS = Tags(
    head='<invoke name="NAME">\n',
    key='<parameter name="KEY">',
    end="</parameter>\n",
    tail="</invoke>\n",
    call=re.compile(r'<invoke name="([^"]+)">(.*?)</invoke>(?=\s*(?:<invoke|$))', re.DOTALL),
    parameter=re.compile(
        r'<parameter name="([^"]+)">(.*?)</parameter>(?=\s*(?:<parameter|$))', re.DOTALL
    ),
)

MINIMAX = ToolFormat(
    name="minimax",
    opening="<minimax:tool_call>",
    closing="</minimax:tool_call>",
    before="<minimax:tool_call>\n",
    between="",
    after="</minimax:tool_call>",
    block=Block(read=_TAGS.read, write=_TAGS.write),
)
