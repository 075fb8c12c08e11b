"""DeepSeek since V3.2: a markup of its own, whose parameters say whether they are texts.

https://huggingface.co/deepseek-ai/DeepSeek-V3.2 (encoding)
"""

import re

from loire.text.tools.blocks import Block
from loire.text.tools.formats import ToolFormat
from loire.text.tools.tagged import Tags

_MARK = "｜DSML｜"

_TAGS = Tags(
    head=f'<{_MARK}invoke name="NAME">\n',
    key=f'<{_MARK}parameter name="KEY" string="IS_TEXT">',
    end=f"</{_MARK}parameter>\n",
    tail=f"</{_MARK}invoke>\n",
    call=re.compile(
        rf'<{_MARK}invoke name="([^"]+)">(.*?)</{_MARK}invoke>(?=\s*(?:<{_MARK}invoke|$))',
        re.DOTALL,
    ),
    parameter=re.compile(
        rf'<{_MARK}parameter name="([^"]+)"(?: string="(?P<is_text>true|false)")?>(?P<value>.*?)'
        rf"</{_MARK}parameter>(?=\s*(?:<{_MARK}parameter|$))",
        re.DOTALL,
    ),
)


def _calls(around: str) -> ToolFormat:
    return ToolFormat(
        name=f"dsml {around}",
        opening=f"<{_MARK}{around}>",
        closing=f"</{_MARK}{around}>",
        before=f"<{_MARK}{around}>\n",
        between="",
        after=f"</{_MARK}{around}>",
        block=Block(read=_TAGS.read, write=_TAGS.write, tokens=(_MARK,)),
    )


DSML = _calls("function_calls")
"""V3.2."""
DSML_TOOLS = _calls("tool_calls")
"""V4."""
