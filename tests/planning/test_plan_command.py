"""`loire plan` from the command line."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.base.units import parse_bytes, parse_count, parse_tokens
from loire.cli.main import main

TALK = shlex.split(
    "plan --params 13B --dtype fp16 --kv-per-token 1MB --device h100-80gb --window 8k"
)


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path / "home"))


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict:  # type: ignore[type-arg]
    assert main([*arguments, "--json"]) == status
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_the_talks_figures(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json_of(capsys, *TALK)
    assert plan["weights_bytes"] == 26 * 10**9
    assert plan["activation_bytes"] == 0
    assert plan["kv_memory_bytes"] == 54 * 10**9
    assert plan["kv_bytes_per_token"] == 10**6
    assert plan["kv_capacity_tokens"] == 54_000
    assert plan["window"] == 8192
    assert plan["concurrent_requests"] == 54_000 / 8192
    assert plan["decode_tokens_per_s_limit"] == pytest.approx(128.8, abs=0.1)
    opt, grouped = plan["comparison"]
    assert (opt["model"], opt["kv_bytes_per_token"]) == ("OPT-13B", 819_200)
    assert grouped["kv_bytes_per_token"] < opt["kv_bytes_per_token"] / 4


def test_a_published_model_without_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = json_of(capsys, "plan", "Llama-3-8B", "--device", "h100-80gb")
    assert plan["weights_bytes"] == pytest.approx(16.06e9, rel=0.001)
    assert plan["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert plan["window"] == 8192
    # A file of that name is meant where there is one; other names are refused with the list.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-3-8b").write_text("")
    assert main(["plan", "llama-3-8b"]) == 1
    assert "neither a model directory" in capsys.readouterr().err
    assert main(["plan", "llama-9"]) == 1
    assert "Without its files, a plan knows llama-2-7b, " in capsys.readouterr().err


def test_experts_are_all_held_and_some_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("plan", "--params", "30B", "--kv-per-token", "100kB", "--device", "h100-80gb")
    plan = json_of(capsys, *flags, "--active", "3B")
    assert plan["weights_bytes"] == 60 * 10**9
    assert plan["step_weights_bytes"] == 6 * 10**9
    dense = json_of(capsys, *flags)
    assert dense["kv_capacity_tokens"] == plan["kv_capacity_tokens"]
    ratio = plan["decode_tokens_per_s_limit"] / dense["decode_tokens_per_s_limit"]
    assert ratio == pytest.approx(10)
    assert main([*flags, "--active", "40B"]) == 1
    assert "more than all parameters" in capsys.readouterr().err
    assert main(["plan", "llama-3-8b", "--active", "3B"]) == 1
    assert "--active belongs to --params" in capsys.readouterr().err


def test_the_table_has_the_talks_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TALK) == 0
    text = capsys.readouterr().out
    for figure in ("26.0 GB", "54.0 GB", "54,000 tokens", "6.6", "about 7", "OPT-13B", "800 KiB"):
        assert figure in text
    assert "\x1b" not in text  # no colours outside a terminal
    bar = next(line for line in text.splitlines() if len(set(line.strip())) == 2).strip()
    assert bar.count(bar[0]) / len(bar) == pytest.approx(26 / 80, abs=0.02)


def test_neither_torch_nor_numpy_is_imported() -> None:
    script = (
        "import sys; from loire.cli.main import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'rich', 'gguf', 'transformers', 'psutil'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *TALK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "54,000" in done.stdout


def test_planning_for_a_model_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from loire.cli.main import main; status = main(sys.argv[1:]);"
        "sys.exit('imported torch' if 'torch' in sys.modules else status)"
    )
    model = write_llama(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", str(model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_llama(directory: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    hidden, heads, inner, vocab = 64, 4, 128, 256
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        layer + "self_attn.q_proj.weight": (hidden, hidden),
        layer + "self_attn.k_proj.weight": (hidden // 2, hidden),
        layer + "self_attn.v_proj.weight": (hidden // 2, hidden),
        layer + "self_attn.o_proj.weight": (hidden, hidden),
        layer + "mlp.gate_proj.weight": (inner, hidden),
        layer + "mlp.up_proj.weight": (inner, hidden),
        layer + "mlp.down_proj.weight": (hidden, inner),
        layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,),
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, str(directory / "model.safetensors"))
    return directory


def test_a_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_llama(tmp_path / "model"))
    plan = json_of(capsys, "plan", model, "--device", "l4", "--prompt", "100", "--output", "28")
    assert plan["window"] == 2048
    assert plan["kv_bytes_per_token"] == 2 * 1 * 2 * 16 * 2
    assert plan["activation_bytes"] > 0
    assert plan["max_batch"] == plan["kv_capacity_tokens"] // 128
    assert plan["comparison"] == []
    halved = json_of(capsys, "plan", model, "--device", "l4", "--kv-dtype", "fp8")
    assert halved["kv_bytes_per_token"] * 2 == plan["kv_bytes_per_token"]
    assert (plan["kv_dtype"], halved["kv_dtype"]) == ("bfloat16", "fp8")
    with_head = json_of(capsys, "plan", model, "--device", "l4", "--quantization", "q8_0")
    assert with_head["weights_bytes"] == pytest.approx(plan["weights_bytes"] * 8.5 / 16, rel=0.02)


def test_figures_given_by_hand_replace_those_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = shlex.split("--memory 100GB --bandwidth 2TB/s --flops 500TFLOP/s")
    for base in (TALK, [part for part in TALK if part not in ("--device", "h100-80gb")]):
        plan = json_of(capsys, *base, *flags)
        assert plan["memory_bytes"] == 100 * 10**9
        assert plan["bandwidth_bytes_per_s"] == 2 * 10**12
        assert plan["flops"] == 500 * 10**12
        assert plan["break_even_batch"] == pytest.approx(250)


def test_16_bit_throughput_says_nothing_of_float32(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json_of(capsys, *TALK, "--dtype", "float32")
    assert plan["weights_bytes"] == 52 * 10**9
    assert plan["flops"] is None
    assert plan["break_even_batch"] is None
    assert plan["decode_tokens_per_s_limit"] is not None


def test_what_if_takes_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    command = shlex.split("plan --params 13B --kv-per-token 1MB --what-if")
    lists = shlex.split("--device h200,l40s --window 4k,8k --quantization none,q4_0")
    plans = json_of(capsys, *command, *lists)["plans"]
    found = [(plan["device"], plan["window"], plan["quantization"]) for plan in plans]
    assert sorted(found, key=str) == sorted(
        ((d, w, q) for d in ("h200", "l40s") for w in (4096, 8192) for q in ("none", "q4_0")),
        key=str,
    )
    assert main([*command, *lists]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 + 8


def test_what_if_without_lists_shows_the_usual(capsys: pytest.CaptureFixture[str]) -> None:
    plans = json_of(capsys, *TALK, "--what-if")["plans"]
    assert {plan["window"] for plan in plans} == {2048, 8192, 32768, 131072}
    assert {plan["quantization"] for plan in plans} == {None, "q8_0", "q4_0"}


def test_a_plan_that_does_not_fit_ends_with_1_and_says_what_helps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = shlex.split("plan --params 70B --kv-per-token 320KB --device h100-80gb")
    assert main([*command, "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fits"] is False
    assert "--tensor-parallel-size 2" in captured.err
    assert main([*command, "--tensor-parallel-size", "2"]) == 0
    capsys.readouterr()
    plan = json_of(capsys, *shlex.split("plan llama-3-8b --tensor-parallel-size 2 --memory 40GB"))
    assert 0.53 < plan["rank_weights_bytes"] / 16.06e9 < 0.54  # an embedding of 1.05 GB in each
    assert plan["rank_kv_bytes_per_token"] * 2 == plan["kv_bytes_per_token"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--params 13B", "--kv-per-token"),
        ("--kv-per-token 1MB", "--params"),
        ("some/model --params 13B --kv-per-token 1MB", "not both"),
        ("--params 13B --kv-per-token 1MB --device h100", "h100-80gb"),
        ("--params 13B --kv-per-token 1MB --dtype int7", "bfloat16"),
        ("--params 13B --kv-per-token 1MB --quantization q3", "q4_0"),
        ("--params 13B --kv-per-token 1MB --kv-dtype fp8", "--kv-dtype"),
        ("--params 13B --kv-per-token 1MB --window 4k,8k", "--what-if"),
        ("--params 13B --kv-per-token 1MB --window 1k --prompt 2k", "2048"),
        ("--params 0 --kv-per-token 1MB", "--params"),
        ("/nowhere/at/all", "nowhere"),
    ],
)
def test_mistakes_are_explained(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments.split()]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    ["--memory 8XB", "--bandwidth fast", "--flops 0", "--tensor-parallel-size 0", "--window 8q"],
)
def test_values_that_are_no_values_are_mistakes_of_usage(arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments.split()])
    assert caught.value.code == 2


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "M", "B", "T"]))
@settings(deadline=None)
def test_units(number: int, suffix: str) -> None:
    power = " kMBT".index(suffix) if suffix else 0
    assert parse_count(f"{number}{suffix}") == number * 1000**power
    assert parse_bytes(f"{number} GB") == number * 10**9
    assert parse_bytes(f"{number}gib") == number * 2**30
    assert parse_tokens(f"{number}k") == number * 1024


@given(st.text(alphabet="0123456789.eE-+ kMGTiBx", max_size=8))
@settings(deadline=None)
def test_units_parse_or_refuse(text: str) -> None:
    for parse in (parse_bytes, parse_count, parse_tokens):
        try:
            value = parse(text)
        except ConfigError:
            continue  # refused, as anything but this error would not be
        assert value >= 0


def test_adapters_and_bits_are_counted(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json_of(capsys, "plan", str(tiny_llama))
    plan = json_of(capsys, "plan", str(tiny_llama), "--bits", "3.5", "--lora", "15x16")
    one = json_of(capsys, "plan", str(tiny_llama), "--bits", "3.5", "--lora", "1x1")
    assert plan["adapter_bytes"] == 15 * 16 * one["adapter_bytes"] > 0
    # (Vectors and a second embedding aside, 16 bits became 3.5.)
    assert 3 < plain["weights_bytes"] / plan["weights_bytes"] < 8
    less = plan["weights_bytes"] - plain["weights_bytes"] + plan["adapter_bytes"]
    assert plain["kv_memory_bytes"] - plan["kv_memory_bytes"] == pytest.approx(less, abs=2e9)
    assert main(["plan", str(tiny_llama), "--lora", "15x16"]) == 0
    assert "adapters" in capsys.readouterr().out
    for arguments, message in (
        ([*TALK, "--lora", "2x8"], "--lora needs a MODEL"),
        ([*TALK, "--bits", "4"], "--bits needs a MODEL"),
        (["plan", str(tiny_llama), "--bits", "4", "--quantization", "q8_0"], "not both"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    for flag, value in (("--lora", "15"), ("--lora", "0x8"), ("--lora", "2x513"), ("--bits", "x")):
        with pytest.raises(SystemExit):
            main(["plan", str(tiny_llama), flag, value])
    capsys.readouterr()
