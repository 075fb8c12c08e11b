"""openai-agents as it comes: OPENAI_BASE_URL and OPENAI_API_KEY say where."""

from agents import Agent, Runner, function_tool, set_default_openai_api


@function_tool
def level(station: str) -> str:
    """How high the river is."""
    return f"{station}: 2.5 m"


for api in ("responses", "chat_completions"):
    set_default_openai_api(api)
    agent = Agent(name="Guide", instructions="Help.", tools=[level], model="scripted")
    first = Runner.run_sync(agent, "How high is it at Tours?")
    assert first.final_output == "It gave: Tours: 2.5 m", first.final_output
    more = [*first.to_input_list(), {"role": "user", "content": "And at Blois?"}]
    second = Runner.run_sync(agent, more)
    assert second.final_output == "It gave: Blois: 2.5 m", second.final_output
