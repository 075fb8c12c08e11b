"""Changed model files, thousands of them: each is opened or refused in words, or this says so.

    python tests/fuzz/run.py [--cases N] [--minutes M] [--seed S] [--only KIND] [--keep DIR]

Each case runs in a child process under limits. A fault is an end by a signal, more than 5 s of
CPU, more than 2 GB, or an exception that is none of Loire's. Ends with status 1 if there was one;
--keep writes the files of each fault. The same seed gives the same files.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import mutate
import samples

from loire.base.errors import LoireError

CPU_S = 5
MEMORY_BYTES = 2 * 2**30
PER_CHILD = 40
GENERATED_SHARE = 0.1
"""Of the cases: also loaded, and asked for some tokens."""
MESSAGES = [{"role": "user", "content": "Hello, w\u00f6rld 123 <|im_end|>"}]


def prepare(seed: int, kind: str, folder: Path) -> Path:
    """Write the files of a case."""
    rng = random.Random(f"{kind} {seed}")
    if kind == "gguf":
        path = folder / "model.gguf"
        path.write_bytes(mutate.gguf(rng))
        return path
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    return samples.write(folder, mutate.directory(rng))


def use(path: Path, *, generate: bool) -> None:
    """What Loire does with a model, from its header to (where asked) some tokens."""
    from loire.checkpoint.open import open_checkpoint
    from loire.text.tokenizer import checkpoint_tokenizer

    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint_tokenizer(checkpoint)
    ids = tokenizer.encode(str(MESSAGES[0]["content"]))
    tokenizer.decode([*ids, 0, 1, 2, tokenizer.vocab_size - 1])
    for token_id in ids:
        tokenizer.token_bytes(token_id)
    if generate:
        from loire import LLM, SamplingParams

        options: dict[str, Any] = {"kv_cache_memory_bytes": 4_000_000, "num_threads": 1}
        with LLM(str(path), **options) as llm:
            params = SamplingParams(max_tokens=3, min_tokens=2, temperature=0.0)
            if llm.frontend.has_chat_template:
                llm.chat(MESSAGES, params)
            llm.generate("Hi", params)


def outcome(work: Callable[[], None]) -> str:
    """How it ended: ok, refused, or what the fault is."""
    try:
        work()
    except LoireError as error:
        return "refused" if len(str(error)) < 1500 else f"message of {len(str(error))} characters"
    except MemoryError:
        return "more than 2 GB"
    except BaseException as error:  # noqa: BLE001  whatever comes is what is looked for
        own = [f for f in traceback.extract_tb(error.__traceback__) if "loire" in f.filename]
        where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return f"{type(error).__name__}: {str(error)[:120]}{where}".replace("\n", " ")
    return "ok"


def child(cases: list[tuple[int, str]], folder: Path, tell: int) -> None:
    """Run cases one after another, telling each before and after it runs."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # panics are loud
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed, kind in cases:
        path = prepare(seed, kind, folder)
        generate = random.Random(seed).random() < GENERATED_SHARE
        os.write(tell, b"begun\n")
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        told = outcome(lambda path=path, generate=generate: use(path, generate=generate))
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(tell, told.encode("utf-8", "replace")[:1000] + b"\n")


def run(cases: list[tuple[int, str]], folder: Path) -> list[str]:
    """Outcomes of cases, in order; fewer if one of them ended the child: that is the last."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setpgid(0, 0)
        child(cases, folder, write)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        lines = pipe.read().decode("utf-8", "replace").splitlines()
    _, status = os.waitpid(pid, 0)
    outcomes = [line for line in lines if line != "begun"]
    if os.WIFSIGNALED(status) and len(outcomes) < len(cases):
        number = os.WTERMSIG(status)
        took = number in (signal.SIGPROF, signal.SIGXCPU)
        outcomes.append(f"more than {CPU_S} s of CPU" if took else f"signal {number}")
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=30_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("gguf", "directory"))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    import loire.api
    import loire.execution.build  # noqa: F401  imported once, for all children

    kinds = (args.only,) if args.only else ("gguf", "directory")
    end = time.monotonic() + 60 * args.minutes
    counts: Counter[str] = Counter()
    faults: dict[str, tuple[int, str]] = {}
    waiting = [(args.seed * 10**6 + i, kinds[i % len(kinds)]) for i in range(args.cases)]
    with tempfile.TemporaryDirectory() as scratch:
        while waiting and time.monotonic() < end:
            batch = waiting[:PER_CHILD]
            outcomes = run(batch, Path(scratch))
            waiting = waiting[max(len(outcomes), 1) :]
            for case, told in zip(batch, outcomes, strict=False):
                counts[told if told in ("ok", "refused") else "faults"] += 1
                if told in ("ok", "refused"):
                    continue
                print(f"{case[1]} {case[0]}: {told}", flush=True)
                if told not in faults and args.keep:
                    prepare(*case, _made(args.keep / f"{case[1]}-{case[0]}"))
                faults.setdefault(told, case)
    print(f"{sum(counts.values())} cases: {counts['ok']} taken, {counts['refused']} refused, "
          f"{counts['faults']} faults of {len(faults)} kinds")  # fmt: skip
    return 1 if faults else 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
