"""instructor: answers as objects, by tools and by JSON schemas."""

import instructor
from pydantic import BaseModel


class Level(BaseModel):
    """How high the river is."""

    station: str
    metres: float


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_provider("openai/scripted", mode=mode)
    messages = [{"role": "user", "content": "How high is it at Tours?"}]
    for question in ("How high is it at Tours?", "Say it again."):
        messages.append({"role": "user", "content": question})
        found = client.chat.completions.create(response_model=Level, messages=messages)
        assert found.model_dump() == {"station": "Tours", "metres": 2.5}, (mode, found)
        messages.append({"role": "assistant", "content": found.model_dump_json()})
