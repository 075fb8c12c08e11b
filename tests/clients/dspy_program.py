"""DSPy: a program that uses tools; its calls are texts of its own form, or JSON."""

import os

import dspy


def level(station: str) -> str:
    """How high the river is."""
    return f"{station}: 2.5 m"


lm = dspy.LM("openai/scripted", api_base=os.environ["OPENAI_BASE_URL"], api_key="none", cache=False)
dspy.configure(lm=lm)
agent = dspy.ReAct("question -> answer", tools=[level])
for question in ("How high is it at Tours?", "And now?"):
    assert agent(question=question).answer == "2.5 m at Tours"
