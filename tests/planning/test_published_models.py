"""Published models by name: their sizes are those that their makers tell."""

import re

import pytest

from loire.planning.capacity import plan_capacity, settle_lengths
from loire.planning.devices import find_device
from loire.planning.model_size import size_of_checkpoint
from loire.planning.published_models import PUBLISHED, published_model

PARAMETERS = {
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "codestral-22b": 22_247_282_688,
    "gemma-2-9b": 9_241_705_984,
    "phi-4": 14_659_507_200,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    assert published_model(name).num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_tell_the_size(name: str) -> None:
    checkpoint = published_model(name)
    told = re.search(r"(?<!x)\b(\d+(?:\.\d+)?)b\b", name)
    if told is not None:
        assert checkpoint.num_parameters / 1e9 == pytest.approx(float(told[1]), rel=0.32)
    assert checkpoint.description.default_window >= 4096
    if not name.startswith("gpt-oss"):
        assert checkpoint.weight_bytes == 2 * checkpoint.num_parameters


def test_layers_of_one_part_and_states_are_counted() -> None:
    """Billions of parameters that the makers tell: 31.6, 3.2 of them for a token; 6.9; 3.2."""
    checkpoint = published_model("nemotron-3-nano-30b-a3b")
    assert checkpoint.num_parameters / 1e9 == pytest.approx(31.6, abs=0.05)
    assert published_model("granite-4.0-h-tiny").num_parameters / 1e9 == pytest.approx(
        6.9, abs=0.05
    )
    assert published_model("granite-4.0-h-micro").num_parameters / 1e9 == pytest.approx(
        3.2, abs=0.05
    )
    matrices, convolution = 64 * 64 * 128, 3 * (64 * 64 + 2 * 8 * 128)
    assert checkpoint.description.state_bytes == 23 * 4 * (matrices + convolution)


def test_experts_of_gpt_oss_have_four_bits() -> None:
    checkpoint = published_model("gpt-oss-20b")
    assert checkpoint.num_parameters == 20_914_757_184
    assert checkpoint.weight_bytes == pytest.approx(13.8e9, rel=0.01)  # as its files


def test_latents_are_kept_once_for_all_heads() -> None:
    size = size_of_checkpoint(
        published_model("deepseek-v3"),
        "deepseek-v3",
        dtype="bfloat16",
        quantization=None,
        kv_dtype="bfloat16",
        on_cpu=False,
    )
    assert size.kv_bytes_per_token == 61 * (512 + 64) * 2
    # Each device of several has heads of its own, but all that they read.
    plan = plan_capacity(
        size, find_device("h100-80gb"), settle_lengths(4096, None, None), tensor_parallel=16
    )
    assert plan.kv_bytes_per_token == 16 * size.kv_bytes_per_token
