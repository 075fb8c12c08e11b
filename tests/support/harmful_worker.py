"""The engine's process with an executor that does harm when it meets certain bytes in a prompt."""

import os
import time

from loire.base.executor import PendingStep, StepExecutor
from loire.base.step import StepPlan
from loire.engine.worker import main

NUM_SPECIAL = 3
"""The tests' tokenizer has that many special tokens before the bytes."""


class HarmfulExecutor:
    """\\x01 kills the process, \\x02 hangs, \\x03 raises, \\x04 makes each step slow."""

    def __init__(self, inner: StepExecutor) -> None:
        self._inner = inner
        self._slow = False

    def launch(self, plan: StepPlan) -> PendingStep:
        prompts = [sequence.prompt_token_ids for sequence in plan.new_sequences]
        harms = {HARMS[token] for prompt in prompts for token in prompt if token in HARMS}
        if 1 in harms:
            os.kill(os.getpid(), 9)
        if 2 in harms:
            time.sleep(3600)
        if 3 in harms:
            raise ZeroDivisionError("for the test")
        self._slow = self._slow or 4 in harms
        if self._slow:
            time.sleep(0.2)
        return self._inner.launch(plan)


def _control_tokens() -> dict[int, int]:
    from tokenizers import pre_tokenizers

    # Byte-level tokenizers write byte b < 33 as the character 256 + b; ids follow the sorted ones.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {NUM_SPECIAL + alphabet.index(chr(256 + byte)): byte for byte in (1, 2, 3, 4)}


HARMS = _control_tokens()

if __name__ == "__main__":
    main(HarmfulExecutor)
