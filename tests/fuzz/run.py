"""Changed model files, thousands of them: each is opened or refused in words, or this says so.

    python tests/fuzz/run.py [--cases N] [--minutes M] [--seed S] [--only KIND] [--keep DIR]
    python tests/fuzz/run.py --formats all --cases 2000 --minutes 60

The second changes, for each format that weights are kept in (or for those that are named), so many
files of that format; the weights of all that are opened are loaded, and some tokens computed.

Cases run one after another in child processes under limits: forty in each, and those that come
after a fault in the next. A fault is an end by a signal, more than 5 s of CPU, a minute without an
answer, more than 2 GB, or an exception that is none of Loire's. Ends with status 1 if there was
one; --keep writes the files of each fault. The same seed gives the same files.
"""

import argparse
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import family_samples
import format_samples
import mutate
import samples
from template_pool import reuse_template_processes

from loire.base.errors import LoireError

CPU_S = 5
MEMORY_BYTES = 2 * 2**30
SILENCE_S = 60
PER_CHILD = 40
GENERATED_SHARE = 0.1
"""Of the cases: also loaded, and asked for some tokens."""
KINDS = ("gguf", "directory", "quantized", "adapter")
FORMAT = "format "
"""What the kinds of --formats begin with."""
ADAPTER = "adapter"
"""The folder of a model's adapter, if there is one."""
MESSAGES = [{"role": "user", "content": "Hello, w\u00f6rld 123 <|im_end|>"}]


def prepare(seed: int, kind: str, folder: Path) -> tuple[str, Path]:
    """Write the files of a case; which of them is changed, and the model's path."""
    rng = random.Random(f"{kind} {seed}")
    fmt = kind.removeprefix(FORMAT)
    if fmt in format_samples.GGUF:
        path = folder / "model.gguf"
        path.write_bytes(format_samples.gguf(rng, fmt, mutate.data))
        return fmt, path
    if kind == "gguf":
        path = folder / "model.gguf"
        path.write_bytes(mutate.gguf(rng))
        return "model.gguf", path
    for old in folder.iterdir():
        if old.is_file():
            old.unlink()
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    if kind == "adapter":
        name, contents = mutate.adapter(rng)
        samples.write(folder / ADAPTER, contents)
        return name, samples.write(folder, samples.files())
    if kind.startswith(FORMAT):
        contents = format_samples.files(rng, fmt, mutate.json_value, mutate.data)
        return fmt, samples.write(folder, contents)
    change = mutate.quantized if kind == "quantized" else mutate.directory
    name, contents = change(rng)
    return re.sub(r"-0\S*", "-N.safetensors", name), samples.write(folder, contents)


def use(path: Path, *, generate: bool) -> None:
    """What Loire does with a model, from its header to (where asked) some tokens."""
    from loire.checkpoint.adapter import open_adapter
    from loire.checkpoint.open import open_checkpoint
    from loire.engine.frontend import Frontend

    checkpoint = open_checkpoint(path)
    front = Frontend(checkpoint, 128)
    tokenizer = front.tokenizer
    ids = tokenizer.encode(str(MESSAGES[0]["content"]))
    tokenizer.decode([*ids, 0, 1, 2, tokenizer.vocab_size - 1])
    for token_id in ids:
        tokenizer.token_bytes(token_id)
    lora = path / ADAPTER
    if lora.is_dir():
        open_adapter(lora, checkpoint.description)
    if front.has_chat_template:
        front.render(MESSAGES)
        front.template.close()
    if generate:
        from loire import LLM, LoRARequest, SamplingParams

        options: dict[str, Any] = {"kv_cache_memory_bytes": 4_000_000, "num_threads": 1}
        with LLM(str(path), **options) as llm:
            params = SamplingParams(max_tokens=3, min_tokens=2, temperature=0.0)
            if llm.frontend.has_chat_template:
                llm.chat(MESSAGES, params)
            request = LoRARequest("lora", 1, str(lora)) if lora.is_dir() else None
            llm.generate("Hi", params, lora_request=request)


def compute(path: Path, number: int) -> None:
    """Load the weights, and compute some tokens in one dtype or the other."""
    import torch

    from loire.checkpoint.open import open_checkpoint
    from loire.models.loading import load_decoder
    from support.paged_driver import CPU, DrivenSequence, PagedDriver

    dtype = torch.bfloat16 if number % 2 else torch.float32
    decoder = load_decoder(
        open_checkpoint(path), dtype=dtype, device=CPU, backend=_backend(), max_model_len=32
    )
    driver, sequence = PagedDriver(decoder, num_blocks=8), DrivenSequence()
    for tokens in (range(8), [5]):
        driver.step([(sequence, tokens)])


@cache
def _backend() -> Any:
    import torch

    from loire.kernels.select import select_backend
    from support.paged_driver import CPU

    torch.set_num_threads(1)
    return select_backend("auto", CPU, torch.float32, 1)


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
    reuse_template_processes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed, kind in cases:
        name, path = prepare(seed, kind, folder)
        generate = random.Random(seed).random() < GENERATED_SHARE
        work = partial(use, path, generate=generate)
        if kind.startswith(FORMAT) and not generate:
            work = partial(compute, path, seed)
        os.write(tell, f"{name}\n".encode())
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        told = outcome(work)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(tell, told.encode("utf-8", "replace")[:1000] + b"\n")


def run(cases: list[tuple[int, str]], folder: Path) -> list[tuple[str, str]]:
    """Which file was changed and what came of it, of each case in order.

    Fewer if one of them ended the child: that is the last.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setpgid(0, 0)
        child(cases, folder, write)
        os._exit(0)
    os.close(write)
    told, silent = _told(read, pid)
    if silent:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    outcomes = list(zip(told[::2], told[1::2], strict=False))
    if len(outcomes) < len(cases):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        reason = f"signal {number}" if number else f"status {os.waitstatus_to_exitcode(status)}"
        if number in (signal.SIGPROF, signal.SIGXCPU):
            reason = f"more than {CPU_S} s of CPU"
        if silent:
            reason = f"no answer in {SILENCE_S} s"
        outcomes.append((told[-1] if len(told) % 2 else "none", reason))
    return outcomes


def _told(pipe: int, pid: int) -> tuple[list[str], bool]:
    """All lines until the pipe ends, and whether nothing came for too long.

    Counted in seconds in which this process runs and the child waits: both may be stopped for a
    while, and what the child computes is bounded by the processor's clock.
    """
    data, silent_s = b"", 0
    with os.fdopen(pipe, "rb", buffering=0) as file:
        while silent_s < SILENCE_S:
            if not select.select([file], [], [], 1.0)[0]:
                silent_s += not _computes(pid)
                continue
            piece = file.read(65536)
            if not piece:
                break
            data, silent_s = data + piece, 0
    return data.decode("utf-8", "replace").splitlines(), silent_s >= SILENCE_S


def _computes(pid: int) -> bool:
    """Whether a process runs, or would if others did not."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] == "R"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=30_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--formats", help="all, or names between commas; --cases for each")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    import loire.api
    import loire.execution.build  # noqa: F401  imported once, for all children

    kinds = (args.only,) if args.only else KINDS
    if args.formats:
        named = format_samples.FORMATS if args.formats == "all" else args.formats.split(",")
        kinds = tuple(FORMAT + name for name in named)
        if unknown := set(named).difference(format_samples.FORMATS):
            parser.error(f"no formats: {', '.join(unknown)}")
        args.cases *= len(kinds)
    if "directory" in kinds:
        family_samples.families()
    end = time.monotonic() + 60 * args.minutes
    counts: Counter[tuple[str, str]] = Counter()
    faults: dict[str, tuple[int, str]] = {}
    waiting = [(args.seed * 10**6 + i, kinds[i % len(kinds)]) for i in range(args.cases)]
    with tempfile.TemporaryDirectory() as scratch:
        while waiting and time.monotonic() < end:
            batch = waiting[:PER_CHILD]
            outcomes = run(batch, Path(scratch))
            waiting = waiting[max(len(outcomes), 1) :]
            for case, (name, told) in zip(batch, outcomes, strict=False):
                kind = told if told in ("ok", "refused") else "fault"
                counts[name, kind] += 1
                if kind != "fault":
                    continue
                print(f"{case[1]} {case[0]}: {name}: {told}", flush=True)
                if told not in faults and args.keep:
                    prepare(*case, _made(args.keep / f"{case[1]}-{case[0]}"))
                faults.setdefault(told, case)
    print_counts(counts)
    if faults:
        print(f"{len(faults)} kinds of faults")
    return 1 if faults else 0


def print_counts(counts: "Counter[tuple[str, str]]") -> None:
    """A line for each file that was changed, and one for all."""
    for name in sorted({name for name, _ in counts}):
        row = {kind: counts[name, kind] for kind in ("ok", "refused", "fault")}
        print(f"{name:30} {_shown(row)}")
    total = {kind: sum(n for (_, k), n in counts.items() if k == kind) for _, kind in counts}
    print(f"{'all':30} {_shown({'ok': 0, 'refused': 0, 'fault': 0} | total)}")


def _shown(row: dict[str, int]) -> str:
    cases, taken, refused = sum(row.values()), row["ok"], row["refused"]
    return f"{cases:7,} cases: {taken:7,} taken, {refused:7,} refused, {row['fault']} faults"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
