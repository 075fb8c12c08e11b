"""smolagents' agent that calls tools: it ends with a tool of its own, final_answer."""

import os

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def level(station: str) -> str:
    """How high the river is.

    Args:
        station: where
    """
    return f"{station}: 2.5 m"


model = OpenAIModel(model_id="scripted", api_base=os.environ["OPENAI_BASE_URL"], api_key="none")
agent = ToolCallingAgent(tools=[level], model=model, verbosity_level=0)
assert agent.run("How high is it at Tours?") == "2.5 m at Tours"
assert agent.run("Again, please.", reset=False) == "2.5 m at Tours"
