"""The command line as a person uses it: in a folder with a module of hers, through `main`, by exit code and output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor as ts
from tersor.cli import CHECK_FAILED, ERROR, USAGE, main
from tersor.sweeps.outcome import Definition, Outcome
from tersor.sweeps.table import Sweep

ZOO = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return net, torch.randn(2, 3, 8, 8)

def batches():
    return [torch.randn(2, 3, 8, 8) for _ in range(3)]

def empty():
    return []

def nonsense():
    return 42

def fails():
    raise KeyError("mine")

def text():
    return "net", torch.randn(3)

def branches():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Net(), torch.randn(3)
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call the command line in a new folder that holds zoo.py; gives exit code, output and errors."""
    (tmp_path / "zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    sys.modules.pop("zoo", None)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        captured = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    yield call
    sys.modules.pop("zoo", None)


def compressed(run: Run, out: str = "out", *options: str) -> Any:
    """Compress the zoo's model; the JSON report."""
    arguments = ("compress", "zoo:model", "--data", "zoo:batches", "--out", out, "--json", *options)
    code, output, errors = run(*arguments)
    assert (code, errors) == (0, "")
    return json.loads(output)


def test_compress_writes_an_artifact_and_says_what_it_did(run: Run) -> None:
    report = compressed(run)
    assert [row["name"] for row in report["report"]][-2:] == ["settle_grids", "correct_bias"]
    assert report["lowering"]["integer_share"] == 1.0
    assert Path("out/model.onnx").stat().st_size > 0
    assert Path("out/program.tersor").stat().st_size > 0


def test_compress_prints_tables(run: Run) -> None:
    code, output, _ = run("compress", "zoo:model", "-d", "zoo:batches", "-o", "out")
    assert code == 0
    assert "calibrate" in output
    assert "100.0% of MACs in integer" in output
    assert "written to out" in output


def test_show_prints_the_graph_and_the_cost(run: Run) -> None:
    code, output, _ = run("show", "zoo:model", "--dynamic", "input:0=batch")
    assert code == 0
    assert "float32[batch, 4, 6, 6] = aten.conv2d" in output
    assert "MACs" in output
    found = json.loads(run("show", "zoo:model", "--json")[1])
    assert found["macs"] == 2 * 6 * 6 * (8 * 27 + 4 * 8)
    assert "conv2d" in run("show", "zoo:model", "--cost")[1]


def test_verify_compares_program_artifact_and_file(run: Run) -> None:
    compressed(run)
    for pair in (("zoo:model", "out"), ("out/program.tersor", "out"), ("out", "out/model.onnx")):
        code, output, errors = run("verify", *pair, "--json", "--seed", "3")
        assert (code, errors) == (0, "")
        (found,) = json.loads(output)["outputs"]
        assert found["cosine"] > 0.99


def test_verify_shows_layers_whose_names_are_shared(run: Run) -> None:
    compressed(run)
    found = json.loads(run("verify", "out/program.tersor", "out", "--layers", "--json")[1])
    names = [row["name"] for row in found["layers"]]
    assert "conv2d" in names or "relu" in names


def test_verify_fails_when_asked_for_more_than_there_is(run: Run) -> None:
    compressed(run)
    assert run("verify", "zoo:model", "out", "--min-sqnr", "15")[0] == 0
    assert run("verify", "zoo:model", "out", "--min-sqnr", "150")[0] == CHECK_FAILED
    assert run("verify", "zoo:model", "out", "--max-relative", "1e-9")[0] == CHECK_FAILED


def test_bench_measures_each(run: Run) -> None:
    compressed(run)
    found = json.loads(run("bench", "zoo:model", "out", "out/model.onnx", "--seconds", "0.05", "--json")[1])
    assert set(found) == {"zoo:model", "out", "out/model.onnx"}
    assert all(entry["median"] > 0 for entry in found.values())
    assert "speed" in run("bench", "zoo:model", "--seconds", "0.05")[1]


def test_bench_lowers_to_a_target_first_where_one_is_named(run: Run) -> None:
    found = json.loads(run("bench", "zoo:model", "--target", "onnxruntime", "--seconds", "0.05", "--json")[1])
    assert set(found) == {"zoo:model on onnxruntime"}


def test_bench_marks_what_ran_on_a_stand_in(run: Run) -> None:
    compressed(run, "out", "--target", "hls", "--dynamic", "input:0=batch")
    output = run("bench", "zoo:model", "out", "--seconds", "0.05")[1]
    assert "out (simulated)" in output
    assert "time of a stand-in, not of the target" in output


def test_an_engine_is_built_and_audited_and_says_what_it_runs_on(run: Run) -> None:
    code, output, _ = run("compress", "zoo:model", "--data", "zoo:batches", "--target", "tensorrt", "--out", "engine")
    assert code == 0
    assert "tensorrt: 100.0% of MACs in integer" in output
    assert "model.engine" in output
    code, _, errors = run("bench", "zoo:model", "engine", "--seconds", "0.01")
    assert (code, "run_onnx" in errors) == (ERROR, True) or code == 0


def test_an_onnx_file_is_a_model_too(run: Run) -> None:
    assert run("compress", "zoo:model", "--recipe", "float", "--out", "float")[0] == 0
    code, _, errors = run("compress", "float/model.onnx", "--data", "zoo:batches", "--out", "int8")
    assert (code, errors) == (0, "")
    found = json.loads(run("verify", "zoo:model", "int8", "--json")[1])
    assert found["outputs"][0]["sqnr"] > 20
    assert "aten.conv2d" in run("show", "float/model.onnx")[1]


def test_targets_and_passes_are_listed(run: Run) -> None:
    assert "onnxruntime" in {row["target"] for row in json.loads(run("targets", "--json")[1])}
    assert {"quantize", "canonicalize"} <= {row["pass"] for row in json.loads(run("passes", "--json")[1])}
    assert {"float", "int4_weights", "cnn_neon"} <= set(re.split(r"[\s,]+", run("passes")[1]))


def test_a_broken_package_hides_no_other(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tersor.backends]\nb = nowhere:B\n[tersor.passes]\np = nowhere:P\n")
    monkeypatch.syspath_prepend(tmp_path)
    for verb, known in (("targets", "onnxruntime"), ("passes", "quantize")):
        code, output, _ = run(verb)
        assert code == 0
        assert known in output
        assert "cannot be loaded" in output


def test_a_pass_says_what_its_options_are(run: Run) -> None:
    code, output, _ = run("passes", "smooth_quant")
    assert code == 0
    assert "Divide channels of what linears read" in output
    assert "tuple[float, ...]" in output
    assert {"option": "count", "type": "int", "default": "16"} in json.loads(run("passes", "smooth_quant", "--json")[1])
    assert "did you mean 'smooth_quant'?" in run("passes", "smoothquant")[2]


def test_the_summary_of_a_pass_is_a_whole_paragraph(run: Run) -> None:
    found = {row["pass"]: row["what"] for row in json.loads(run("passes", "--json")[1])}
    assert found["quantize_weights"].endswith("smaller, and nearly as exact.")


def test_the_folder_of_an_artifact_stands_for_the_program_in_it(run: Run) -> None:
    compressed(run)
    assert run("show", "out")[1] == run("show", "out/program.tersor")[1]
    Path("empty").mkdir()
    code, _, errors = run("show", "empty")
    assert (code, "holds no program" in errors) == (2, True)


def test_a_recipe_file_of_ones_own(run: Run) -> None:
    Path("mine.yaml").write_text("passes:\n  - fold_batch_norm\n")
    report = compressed(run, "out", "--recipe", "mine.yaml")
    assert [row["name"] for row in report["report"]] == ["given", "fold_batch_norm"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("compres", "zoo:model"), USAGE, "compres"),
        (("compress", "zoo:model"), USAGE, "--out"),
        (("compress", "zoo:model", "--outt", "x"), USAGE, "--out"),
        (("compress", "zoo:model", "-o", "x", "--recipe", "int9"), USAGE, "did you mean 'int8'"),
        (("compress", "zoo:model", "-o", "x", "--target", "onnxruntme"), USAGE, "did you mean 'onnxruntime'"),
        (("compress", "zoo:modle", "-o", "x", "-d", "zoo:batches"), USAGE, "no 'modle'"),
        (("compress", "zo:model", "-o", "x", "-d", "zoo:batches"), USAGE, "zo"),
        (("compress", "zoo:nonsense", "-o", "x", "-d", "zoo:batches"), USAGE, "does not give a model"),
        (("compress", "zoo:model", "-o", "x", "-d", "zoo:nonsense"), USAGE, "does not give data"),
        (("compress", "zoo:model", "-o", "x", "-d", "zoo:empty"), ERROR, "empty"),
        (("compress", "zoo:model", "-o", "x"), ERROR, "calibration data is missing"),
        (("compress", "zoo:branches", "-o", "x", "-d", "zoo:batches"), ERROR, "torch.where"),
        (("compress", "missing.onnx", "-o", "x", "-d", "zoo:batches"), ERROR, "missing.onnx"),
        (("show", "zoo.onnx", "--dynamic", "x:0=batch"), USAGE, "are its own"),
        (("show", "missing.tersor"), ERROR, "missing.tersor"),
        (("show", "zoo.py"), ERROR, "zoo.py"),
        (("show", "zoo:model", "--dynamic", "input"), USAGE, "x:0=batch"),
        (("verify", "zoo:model", "nowhere/"), ERROR, "nowhere"),
        (("bench",), USAGE, "MODELS"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_tells(
    run: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, output, errors = run(*arguments)
    assert found == code
    assert said in errors
    assert "Traceback" not in output + errors


def test_an_error_in_the_users_function_shows_her_line_and_is_no_failed_check(run: Run) -> None:
    code, output, errors = run("show", "zoo:fails")
    assert (code, output) == (ERROR, "")
    assert 'raise KeyError("mine")' in errors


def test_what_is_no_model_is_named(run: Run) -> None:
    assert "found:    (str, Tensor)" in run("show", "zoo:text")[2]


def test_a_narrow_terminal_cuts_off_no_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code, output, _ = run("verify", "zoo:model", "zoo:model")
    assert code == 0
    assert "max |difference|" in output
    assert "…" not in output


def test_a_sweep_takes_dynamic_dimensions_and_fails_where_every_try_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers, which take seconds to start, are tested in tests/sweeps."""
    definition = Definition("model", (), ("bytes",), None)
    given: list[Any] = []

    def failing(model: Any, *_: object, **__: object) -> Sweep:
        given.append(model)
        return Sweep(definition, (Outcome("key", "int8", error="the pass failed"),))

    monkeypatch.setattr("tersor.cli.sweeping.run_sweep", failing)
    (tmp_path / "sweep.yaml").write_text("model: zoo:model\nrecipes: [float]\n")
    assert run("sweep", "sweep.yaml", "--out", "out", "--json")[0] == ERROR
    assert run("sweep", "sweep.yaml", "--out", "out", "--dynamic", "input:0=batch", "--json")[0] == ERROR
    assert given[0] == "zoo:model"
    assert given[1].signature.dims.keys() == {"batch"}


def test_help_names_every_verb(run: Run) -> None:
    code, output, _ = run("--help")
    assert code == 0
    for verb in ("compress", "show", "verify", "bench", "targets", "passes"):
        assert verb in output
        assert run(verb, "--help")[0] == 0


def test_an_interrupt_is_not_a_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.cli.examining.load_program", interrupted)
    code, _, errors = run("show", "zoo:model")
    assert code == 130
    assert "interrupted" in errors


@pytest.mark.parametrize("verb", [("targets",), ("passes", "--json")])
def test_a_reader_that_stops_reading_is_no_failed_check(verb: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "tersor", *verb], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


TRAINED = """
def net():
    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 2)
        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))
    return Net(), torch.randn(2, 3, 8, 8)

def labelled():
    torch.manual_seed(1)
    x = torch.randn(32, 3, 8, 8)
    return [(x, (x.mean((1, 2, 3)) > 0).long())]

def inputs():
    return [labelled()[0][0][:2]]

def agreement(program):
    with torch.no_grad():
        x = inputs()[0]
        return torch.cosine_similarity(program(x).flatten(), net()[0](x).flatten(), dim=0)

def size(program):
    return -program.cost().parameters
"""


def test_compress_within_a_budget(run: Run) -> None:
    Path("zoo.py").write_text(ZOO + TRAINED)
    training = ("--train-data", "zoo:labelled", "--loss", "cross_entropy", "--epochs", "1")
    judging = ("--metric", "accuracy", "--validation", "zoo:labelled", "--floor", "0.1")
    budget = ("--macs", "0.6x", "--bytes", "50%")
    given = ("compress", "zoo:net", "--out", "out", "--dynamic", "x:0=batch", *training, *judging, *budget)
    code, output, errors = run(*given)
    assert (code, errors) == (0, "")
    assert "as given" in output
    assert "* channels cut" in output
    assert {"recipe.yaml", "program.tersor", "run.json", "model.onnx"} <= {path.name for path in Path("out").iterdir()}
    again = (
        "compress",
        "zoo:net",
        "--recipe",
        "out/recipe.yaml",
        "--out",
        "again",
        "--dynamic",
        "x:0=batch",
        *training,
    )
    code, output, errors = run(*again)
    assert (code, errors) == (0, "")
    ours, theirs = (ts.load(f"{folder}/program.tersor") for folder in ("out", "again"))
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.tensors().items())


def test_compress_looks_for_channels_with_so_many_trials(run: Run) -> None:
    Path("zoo.py").write_text(ZOO + TRAINED)
    judging = ("--metric", "zoo:agreement", "--floor", "0.2", "--data", "zoo:inputs", "--target", "tensorrt")
    code, _, errors = run("compress", "zoo:net", "--out", "out", *judging, "--trials", "2", "--json")
    assert (code, errors) == (0, "")
    assert any(
        "2 allotments of channels were judged" in note for note in json.loads(Path("out/run.json").read_text())["notes"]
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--macs", "fast"), USAGE, "macs is no limit"),
        (("--macs", "0.5x", "--recipe", "int8"), USAGE, "give --recipe, or a budget"),
        (("--floor", "0.9"), USAGE, "a floor needs a metric"),
        (("--trials", "9"), USAGE, "give --floor with it"),
        (("--floor", "0.9", "--trials", "0"), USAGE, "--trials"),
        (("--macs", "0.00001x", "--data", "zoo:batches"), ERROR, "no plan is so small"),
        (("--macs", "0.5x", "--train-data", "zoo:labelled", "--loss", "crossentropy"), USAGE, "no loss"),
        (("--macs", "0.5x", "--metric", "zoo:absent"), USAGE, "has no 'absent'"),
    ],
)
def test_a_budget_that_makes_no_sense(run: Run, options: tuple[str, ...], code: int, words: str) -> None:
    Path("zoo.py").write_text(ZOO + TRAINED)
    found, _, errors = run("compress", "zoo:net", "--out", "out", *options)
    assert found == code
    assert words in " ".join(errors.split())
    assert not Path("out").exists()
