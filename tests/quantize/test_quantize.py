"""A whole run: what is written runs, says what it is, and goes on where it was broken off."""

import errno
import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from loire import LLM, SamplingParams
from loire.adapt.texts import written_texts
from loire.base.errors import CheckpointError, ConfigError, RequestError, UnsupportedModelError
from loire.checkpoint import saved_description
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.formats import WeightFormat
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.weights import Slice
from loire.cli.main import main
from loire.kernels.block_formats import StoredTensor
from loire.models.layer_loader import Tensors
from loire.models.tensors import TensorReader
from loire.quantize import run as run_module
from loire.quantize.calibration import read_text
from loire.quantize.layer_run import CalibrationRun
from loire.quantize.levels import LEVELS
from loire.quantize.run import Report, quantize
from loire.quantize.save import read_piece
from loire.text.tokenizer import checkpoint_tokenizer
from support.tiny_models import save_tiny_llama

TEXT = read_text(None)[:3000]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("made") / "model"
    return out, run(source, out)


def run(source: Path, out: Path, **changes: Any) -> Report:
    checkpoint = open_checkpoint(source)
    tokenizer = checkpoint_tokenizer(checkpoint)
    options = {"bits": 4.0, "kept": out.with_name("kept"), **changes}
    return quantize(checkpoint, tokenizer, options.pop("text", TEXT), out, **options)


def stored(tensor: Tensor | StoredTensor) -> tuple[str, list[list[int]]]:
    """Format and bytes."""
    if isinstance(tensor, StoredTensor):
        levels = [] if tensor.levels is None else tensor.levels.tolist()
        return tensor.format.name, [*tensor.blocks.tolist(), *levels]
    return str(tensor.dtype), tensor.view(torch.uint8).tolist()


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def test_the_result_runs_like_the_rounded_weights(made: tuple[Path, Report]) -> None:
    out, report = made
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    answers = []
    for quantization in ("auto", "none"):
        with LLM(str(out), dtype="float32", quantization=quantization) as llm:
            answers.append(llm.generate(["Once upon a time"], params)[0].outputs[0].token_ids)
    assert answers[0] == answers[1]
    assert 3.0 < report.bits <= 4.0


def test_levels_are_those_of_the_rows_that_are_read(made: tuple[Path, Report]) -> None:
    """As of a rank, which has some of them."""
    reader = TensorReader(open_checkpoint(made[0]).tensors)
    assert made[1].level_rows
    for name in made[1].level_rows:
        whole = reader.read_blocks(name)
        rows, inputs = whole.shape
        part = Slice(((8, rows // 2), (rows - 8, rows)), (0, inputs), whole.shape)
        wanted = torch.cat([whole.values()[8 : rows // 2], whole.values()[rows - 8 :]])
        assert torch.equal(reader.read_blocks(name, part=part).values(), wanted)
        assert torch.equal(reader.read(name, torch.float32, part=part), wanted)


def test_the_directory_says_what_it_is(source: Path, made: tuple[Path, Report]) -> None:
    out, report = made
    config, before = config_of(out), open_checkpoint(source)
    assert config["made_from"] == source.name
    assert config["bits"] == report.bits
    assert config["formats"] == report.formats
    after = open_checkpoint(out)
    assert after.description == before.description
    assert {x.name for x in after.tensors.values()} == {x.name for x in before.tensors.values()}
    assert after.chat_template == before.chat_template
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "all may be read alike"
    files = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert report.num_bytes <= files <= report.num_bytes + 8192
    told = checkpoint_tokenizer(after).encode("The Loire")
    assert told == checkpoint_tokenizer(before).encode("The Loire")


def test_a_broken_run_goes_on_to_the_same_result(
    source: Path, made: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = run_module.write_piece, []

    def fails_at_the_second(path: Path, piece: run_module.Piece) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, piece)

    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_piece", fails_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="unfinished work on another"):
        run(source, out, bits=5.0)
    monkeypatch.setattr(run_module, "measure", None)  # that was done
    assert run(source, out) == made[1]
    assert 4.0 < run(source, tmp_path / "larger", bits=5.0).bits <= 5.0
    for path in made[0].glob("*.safetensors"):
        again, first = read_piece(out / path.name), read_piece(path)
        assert {name: stored(x) for name, x in again.items()} == {
            name: stored(x) for name, x in first.items()
        }
    assert not out.with_name("model.partial").exists()


@pytest.mark.parametrize(
    ("out", "changes", "says"),
    [
        ("out", {"bits": 2.0}, "from 2.25 to 8.5"),
        ("out", {"text": "Too short."}, "needs at least"),
        ("out", {"bits": 8.4}, "8.4 bits per weight are too few: this model's rows take at least"),
        ("file/out", {}, "out cannot be written: .*file is no folder to write to"),
        ("new/out", {"bits": 8.5}, "layer-0000.* cannot be written: No space left on device"),
    ],
)
def test_what_cannot_be_done_is_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    changes: dict[str, Any],
    says: str,
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").touch()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(run_module, "LEVELS", LEVELS[-1:])  # (Too few bits for one format.)
    with pytest.raises(ConfigError, match=says):
        run(source, tmp_path / out, **changes)
    assert not (tmp_path / out).exists()
    # (Nothing is in the way of another number of bits, or another text.)
    assert [path.parent.name for path in tmp_path.glob("*/*.partial")] == ["new"] * ("new" in out)
    assert not [*tmp_path.glob("*.partial")]


def test_a_model_larger_than_memory_can_be_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its weights, as they were and rounded, there are never those of all layers."""
    source = save_tiny_llama(tmp_path / "source", max_positions=32, num_layers=6)
    monkeypatch.setattr(run_module, "MEASURED_TOKENS", 4)
    read, values = CalibrationRun.layer_tensors, StoredTensor.values
    there: list[weakref.ref[Tensor]] = []
    most = 0

    def count(*new: Tensor | StoredTensor) -> None:
        nonlocal most
        there[:] = [ref for ref in there if ref() is not None]
        there.extend(weakref.ref(tensor) for tensor in new if isinstance(tensor, Tensor))
        most = max(most, sum(x.nbytes for ref in there if (x := ref()) is not None))

    def counted_read(run: CalibrationRun, index: int) -> Tensors:
        found = read(run, index)
        count(*found.values())
        return found

    def counted_values(stored: StoredTensor) -> Tensor:
        found = values(stored)
        count(found)
        return found

    monkeypatch.setattr(CalibrationRun, "layer_tensors", counted_read)
    monkeypatch.setattr(StoredTensor, "values", counted_values)
    run(source, tmp_path / "out", text=TEXT[:100])
    layer = 4 * open_checkpoint(source).num_parameters / 6
    assert layer < most < 3 * layer


def test_numbers_that_are_none_are_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "model")
    file, name = tmp_path / "model" / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = safetensors.torch.load_file(file)
    tensors[name][3, 5] = torch.inf
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=f"{name}' holds numbers that are not finite"):
        run(tmp_path / "model", tmp_path / "out")
    (tmp_path / "text").write_text(TEXT[:400])
    arguments = ["eval", "perplexity", str(tmp_path / "model"), str(tmp_path / "text")]
    assert main([*arguments, "--context", "32", "--num-threads", "1", "--json"]) == 1
    assert "cannot be measured: the model gave" in capsys.readouterr().err
    with pytest.raises(RequestError, match="model cannot write texts: the model gave logits"):
        written_texts(tmp_path / "model", [[5, 6]], 8, lambda share: None)


def test_nothing_is_overwritten(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        run(source, tmp_path)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ({"version": 3}, UnsupportedModelError),
        ({"description": None}, CheckpointError),
        ({"formats": {}}, CheckpointError),
        ({"formats": None}, CheckpointError),
        ({"level_rows": []}, CheckpointError),
        ({"level_rows": {"model.norm.weight": 64}}, CheckpointError),
    ],
)
def test_a_damaged_config_is_one_sentence(
    made: tuple[Path, Report], tmp_path: Path, damage: dict[str, Any], error: type[Exception]
) -> None:
    for path in made[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config_of(made[0]) | damage))
    with pytest.raises(error):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "rows", "says"),
    [
        ({}, 64, None),
        ({}, 12, "12 rows of 'w' share levels, but it must be a multiple of 8"),
        ({}, True, "True rows"),
        ({"shape": (3, 8)}, 64, r"has dtype I8 and the shape \(3, 8\), but should have I8 and"),
        ({"shape": (2, 4)}, 64, r"the shape \(2, 4\), but should have I8 and \(2, 8\)"),
        ({"format": WeightFormat("U8", 1, 1)}, 64, "has dtype U8"),
        (None, 64, "'w_levels' is missing"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    changes: dict[str, Any] | None, rows: object, says: str | None
) -> None:
    place = {"path": Path("x"), "offset": 0}
    levels = TensorInfo(
        name="w_levels", shape=(2, 8), format=WeightFormat("I8", 1, 1), num_bytes=16, **place
    )
    blocks = WeightFormat("U8", 1, 1)
    found = {"w": TensorInfo(name="w", shape=(70, 52), format=blocks, num_bytes=3640, **place)}
    if changes is not None:
        found["w_levels"] = replace(levels, **changes)
    config = {"formats": {"w": "P3"}, "level_rows": {"w": rows}}
    if says is None:
        [made] = saved_description.tensors(found, config, "config.json").values()
        assert (made.shape, made.levels, made.level_rows) == ((70, 128), levels, 64)
        return
    with pytest.raises(CheckpointError, match=says):
        saved_description.tensors(found, config, "config.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vocab_size",), 0),
        (("hidden_size",), -3),
        (("hidden_size",), "64"),
        (("layers", 0, "mixer", "num_kv_heads"), 0),
        (("layers", 0, "mixer", "num_kv_heads"), 3),
        (("layers", 0, "mixer", "head_dim"), 2**40),
        (("layers", 0, "mixer", "kind"), "magic"),
        (("layers", 1, "feed_forward", "intermediate_size"), None),
        (("layers",), []),
    ],
)
def test_a_description_that_cannot_be_is_refused(
    made: tuple[Path, Report], tmp_path: Path, path: tuple[Any, ...], value: object
) -> None:
    for file in made[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = config_of(made[0])
    place: Any = config["description"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, UnsupportedModelError)):
        open_checkpoint(tmp_path)


def test_the_verb(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path / "home"))
    text = tmp_path / "text"
    text.write_text(TEXT)
    assert read_text(str(text), most_texts=0) == ""  # (Of a long file the beginning is read.)
    arguments = ["quantize", str(source), "--bits", "5", "-o", str(tmp_path / "out"), "--json"]
    assert main([*arguments, "--calibration", str(text), "--num-threads", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["bits"] <= 5
    assert sum(summary["formats"].values()) == 16
    assert len([*(tmp_path / "home" / "measured").iterdir()]) == 1
    own = ["quantize", str(source), "--bits", "5", "-o", str(tmp_path / "own"), "--json"]
    assert main([*own, "--calibration", str(text), "--own-texts", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity_after"] != summary["perplexity_after"]
    assert main([*own, "--own-texts", "-1"]) == 1
    assert "at least 0" in capsys.readouterr().err
    assert main([*arguments, "--calibration", str(tmp_path / "missing")]) == 1
    assert "missing cannot be read" in capsys.readouterr().err
