"""The example of talks on continuous batching: seven requests, four slots.

S_1 to S_4 start together and end at different times; S_5, S_6 and S_7 wait. Sequence 3 ends after
two steps and sequence 2 after six, as in Anyscale's "How continuous batching enables 23x
throughput in LLM inference" (2023), from which the picture is known.

Only the scheduler runs: no model is loaded, and a constant stands for every token.
"""

from loire.base.cache_geometry import one_group
from loire.base.config import EngineConfig, Policy
from loire.base.executor import ComputedStep
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.base.step import RowResult, StepPlan, StepRecord, StepResult
from loire.engine.core import EngineCore
from loire.scheduling.presets import build_scheduler

PROMPT_LENGTHS = (3, 5, 2, 4, 3, 2, 4)
OUTPUT_LENGTHS = (4, 6, 2, 5, 4, 3, 2)
NUM_SLOTS = 4
BLOCK_SIZE = 4
MAX_MODEL_LEN = 16
ANY_TOKEN = 7


class ConstantExecutor:
    """Computes nothing: every row that samples gets the same token."""

    def launch(self, plan: StepPlan) -> ComputedStep:
        """The result of a step that took no time."""
        rows = tuple(
            RowResult(row.seq_id, row.epoch, (ANY_TOKEN,) if row.samples else ())
            for row in plan.rows
        )
        return ComputedStep(StepResult(plan.step_id, rows, compute_s=0.0))


def run_seven_requests(policy: Policy) -> list[StepRecord]:
    """The records of the example under a policy; the KV pool has room for four full windows."""
    config = EngineConfig(
        model="seven requests",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        device="none",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=NUM_SLOTS,
        max_num_batched_tokens=64,
        geometry=one_group(BLOCK_SIZE),
        num_blocks=NUM_SLOTS * MAX_MODEL_LEN // BLOCK_SIZE,
        enable_prefix_caching=False,
        policy=policy,
        reserve="max-tokens",
        pipeline_depth=1,
        seed=0,
    )
    core = EngineCore(build_scheduler(config), ConstantExecutor())
    for index, (prompt, output) in enumerate(zip(PROMPT_LENGTHS, OUTPUT_LENGTHS, strict=True)):
        core.add(
            EngineRequest(
                request_id=f"S_{index + 1}",
                prompt_token_ids=(ANY_TOKEN,) * prompt,
                params=SamplingParams(max_tokens=output),
                seed=index,
            )
        )
    while core.has_work:
        core.step()
    return list(core.records)
