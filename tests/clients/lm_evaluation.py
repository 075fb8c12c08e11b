"""lm-evaluation-harness on a small local task: what it finds through the server, and by itself.

MODEL is a directory, LOIRE_URL the server over the same one. The scores, and the log-likelihoods
under them, must be those of transformers.
"""

import os
import tempfile
from pathlib import Path

import lm_eval
from datasets import disable_caching
from lm_eval.tasks import TaskManager

MODEL, URL = os.environ["MODEL"], os.environ["LOIRE_URL"]
QUESTIONS = [
    ("Where does the Loire end?", ["in the Atlantic", "in the Rhine", "in a lake"], 0),
    ("What flows through Tours?", ["the Seine", "the Loire", "the Danube"], 1),
    ("How long is it?", ["ten kilometres", "a mile", "a thousand kilometres"], 2),
    ("Which town lies on it?", ["Blois", "Lille", "Nice"], 0),
    ("What is a river?", ["a hill", "a stream of water", "a town"], 1),
    ("Who swims in it?", ["fish", "stones", "clouds"], 0),
]


def tasks(folder: Path) -> TaskManager:
    import json

    data = folder / "river.jsonl"
    rows = [{"question": q, "choices": c, "label": label} for q, c, label in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (Path(__file__).parent / "tasks").glob("*.yaml"):
        (folder / source.name).write_text(source.read_text().replace("RIVER", str(data)))
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(manager: TaskManager, task: str, kind: str, chat: bool, **args: object) -> object:
    """The scores, and what each question gave."""
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args=args,
        tasks=[task],
        task_manager=manager,
        bootstrap_iters=0,
        apply_chat_template=chat,
        log_samples=True,
    )
    scores = {k: v for k, v in found["results"][task].items() if isinstance(v, float)}
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return scores, [sample["filtered_resps"] for sample in samples]


disable_caching()
with tempfile.TemporaryDirectory() as name:
    manager = tasks(Path(name))
    own = {"pretrained": MODEL, "dtype": "float32", "device": "cpu"}
    served = {"base_url": f"{URL}/v1/completions", "model": MODEL, "tokenizer": MODEL,
              "tokenized_requests": False, "num_concurrent": 2}  # fmt: skip
    scores, likelihoods = evaluate(manager, "river", "hf", False, **own)
    found, through = evaluate(manager, "river", "local-completions", False, **served)
    assert found == scores, (found, scores)
    for ours, theirs in zip(through, likelihoods, strict=True):
        for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
            assert abs(float(a) - float(b)) < 1e-3, (a, b)
            assert str(greedy_a) == str(greedy_b)

    _, texts = evaluate(manager, "river_words", "hf", False, **own)
    _, through = evaluate(manager, "river_words", "local-completions", False, **served)
    assert through == texts, (through, texts)

    _, texts = evaluate(manager, "river_words", "hf", True, **own)
    chats = {"base_url": f"{URL}/v1/chat/completions", "model": MODEL}
    _, through = evaluate(manager, "river_words", "local-chat-completions", True, **chats)
    assert through == texts, (through, texts)
