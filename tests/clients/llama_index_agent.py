"""LlamaIndex's agent that calls functions, over its client for servers with OpenAI's API."""

import asyncio
import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.llms.openai_like import OpenAILike


def level(station: str) -> str:
    """How high the river is."""
    return f"{station}: 2.5 m"


async def main() -> None:
    llm = OpenAILike(
        model="scripted",
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=100_000,
    )
    agent = FunctionAgent(tools=[level], llm=llm, system_prompt="Help.")
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    first = await agent.run("How high is it at Tours?", memory=memory)
    assert str(first) == "It gave: Tours: 2.5 m", first
    second = await agent.run("And at Blois?", memory=memory)
    assert str(second) == "It gave: Blois: 2.5 m", second


asyncio.run(main())
