"""pydantic-ai as it comes: OPENAI_BASE_URL and ANTHROPIC_BASE_URL say where."""

from pydantic_ai import Agent

for model in ("openai-chat:scripted", "openai-responses:scripted", "anthropic:scripted"):
    agent = Agent(model, system_prompt="Help.")

    @agent.tool_plain
    def level(station: str) -> str:
        """How high the river is."""
        return f"{station}: 2.5 m"

    first = agent.run_sync("How high is it at Tours?")
    assert first.output == "It gave: Tours: 2.5 m", (model, first.output)
    second = agent.run_sync("And at Blois?", message_history=first.all_messages())
    assert second.output == "It gave: Blois: 2.5 m", (model, second.output)
