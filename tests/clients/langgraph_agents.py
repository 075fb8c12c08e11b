"""LangGraph over langchain-openai and langchain-anthropic, streamed and whole."""

import warnings

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver

warnings.simplefilter("ignore")
from langgraph.prebuilt import create_react_agent  # noqa: E402


def level(station: str) -> str:
    """How high the river is."""
    return f"{station}: 2.5 m"


MODELS = [
    ChatOpenAI(model="scripted"),
    ChatOpenAI(model="scripted", use_responses_api=True),
    ChatOpenAI(model="scripted", streaming=True),
    ChatAnthropic(model="scripted"),
]
for model in MODELS:
    graph = create_react_agent(model, [level], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    for station, question in (("Tours", "How high is it at Tours?"), ("Blois", "And at Blois?")):
        state = graph.invoke({"messages": [("user", question)]}, thread)
        text = state["messages"][-1].text
        text = text() if callable(text) else text
        assert text == f"It gave: {station}: 2.5 m", (model, text)
