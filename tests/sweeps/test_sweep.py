"""Sweeps: what they compute, what they keep, and what a failing try does."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

import tersor as ts
from tersor.backends.clock import Clock
from tersor.ir.errors import ArchiveError, MissingDependencyError, RecipeError
from tersor.passes.report import as_text
from tersor.passes.training.options import Better
from tersor.recipe import load_recipe
from tersor.run_record import RunRecord
from tersor.sources import load_data, load_program
from tersor.sweeps import Grid, Sweep, sweep
from tersor.sweeps.outcome import Definition, Folder, Outcome, Planned

SCHEMES = Grid("int8", {"quantize.scheme": ["int8", "w4a8"]})


def calls(folder: Path) -> int:
    path = folder / "calls.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_each_try_is_what_its_recipe_gives_alone(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    program = load_program("zoo:model")
    for row, scheme in zip(found.rows, ("int8", "w4a8"), strict=True):
        recipe = folder / f"{scheme}.yaml"
        recipe.write_text(f"passes:\n  - quantize: {{scheme: {scheme}, observer: output}}\n")
        passes = load_recipe(recipe, list(load_data("zoo:batches")))
        alone = ts.PassManager(passes, progress=False).run(program).program
        assert row.costs["bytes"] == alone.cost().parameter_bytes
        assert row.costs["macs"] == alone.cost().macs
        import zoo  # type: ignore[import-not-found]  # written by the fixture

        assert row.metric == pytest.approx(zoo.score(alone), rel=1e-6)
    assert found.rows[0].metric is not None
    assert found.rows[1].metric is not None
    assert found.rows[0].metric > found.rows[1].metric
    assert {row.name for row in found.front} == {"scheme=int8", "scheme=w4a8"}


def test_every_try_leaves_the_record_of_its_run(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    for row in found.rows:
        record = RunRecord.load(folder / "out" / "points" / row.key)
        assert record.steps[-1].metric == row.metric
        assert record.steps[-1].bytes == row.costs["bytes"]
        assert "quantize" in record.recipe
        assert sorted(path.name for path in (folder / "out" / "points" / row.key).iterdir()) == ["run.json"]


def test_the_same_sweep_again_runs_nothing(folder: Path, here: Executor) -> None:
    first = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    more = Grid("int8", {"quantize.scheme": ["w4a8", "int8", "int4"]})
    second = sweep("zoo:model", more, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    assert calls(folder) == 3
    assert second.rows[:2] == first.rows[::-1]
    assert [row.name for row in second.rows] == ["scheme=w4a8", "scheme=int8", "scheme=int4"]


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "zoo:slow"},
        {"data": [torch.ones(1, 3, 8, 8)]},
        {"batches": 2},
        {"target": "onnxruntime"},
        {"model": "program"},
    ],
)
def test_what_changes_a_result_runs_again(folder: Path, here: Executor, change: dict[str, Any]) -> None:
    tries = Grid("float", [{}])
    asked: dict[str, Any] = {"data": "zoo:batches", "metric": "zoo:score", "out": "out", "executor": here}
    sweep("zoo:model", tries, **asked)
    if "model" in change:
        program = load_program("zoo:model")
        program.set_tensor("0.weight", program.tensor("0.weight") * 2)
        sweep(program, tries, **asked)
    else:
        sweep("zoo:model", tries, **{**asked, **change})
    assert calls(folder) == 2


def test_a_damaged_file_of_a_try_runs_it_again(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    (folder / "out" / "points" / f"{found.rows[0].key}.json").write_text('{"key": "x"')
    again = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", metric="zoo:score", executor=here)
    assert calls(folder) == 3
    assert again.rows[0].metric == found.rows[0].metric


class Breaks(ts.Pass):
    """Fails."""

    def run(self, program: ts.Program) -> ts.PassResult:
        raise ZeroDivisionError("nothing to divide by")


def test_a_try_that_fails_is_a_row_with_its_error(folder: Path, here: Executor) -> None:
    tries: dict[str, Any] = {"bad": [Breaks()], "good": [ts.FoldBatchNorm()]}
    found = sweep("zoo:model", tries, out="out", metric="zoo:score", executor=here)
    bad, good = found.rows
    assert "nothing to divide by" in bad.error
    assert bad.costs == {}
    assert not good.error
    assert found.front == (good,)
    assert "1 failed" in str(found)
    assert "nothing to divide by" in as_text(found, width=80)
    sweep("zoo:model", tries, out="out", metric="zoo:score", executor=here)
    assert calls(folder) == 1


def test_a_failed_try_runs_again_when_asked(folder: Path, here: Executor) -> None:
    tries = {"bad": "float"}
    found = sweep("zoo:model", tries, out="out", metric="zoo:text", executor=here)
    assert "gave no number" in found.rows[0].error
    (folder / "zoo.py").write_text((folder / "zoo.py").read_text().replace('return "good"', "return 1.5"))
    import importlib

    import zoo

    importlib.reload(zoo)
    assert sweep("zoo:model", tries, out="out", metric="zoo:text", executor=here).rows[0].error
    again = sweep("zoo:model", tries, out="out", metric="zoo:text", executor=here, retry=True)
    assert (again.rows[0].error, again.rows[0].metric) == ("", 1.5)


def test_a_metric_of_nan_is_kept_and_on_no_front(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", ["float", "int8"], out="out", data="zoo:batches", metric="zoo:nan", executor=here)
    assert all(row.metric is not None and math.isnan(row.metric) for row in found.rows)
    assert found.front == ()
    assert "NaN" in str(found)
    assert [row["metric"] for row in json.loads(found.save(folder / "x.json").read_text())["rows"]] == ["nan", "nan"]


def test_without_a_metric_the_outputs_judge(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", executor=here)
    assert found.quality_name == "SQNR"
    assert all(row.sqnr is not None and 5 < row.sqnr < 80 for row in found.rows)
    assert " dB" in str(found)


def test_passes_of_python_are_tried_too(folder: Path, here: Executor) -> None:
    batches = list(load_data("zoo:batches"))
    tries = [[ts.Quantize(ts.INT8, calibration=batches)], [ts.PruneChannels(target=ts.Channels(0.5))]]
    found = sweep("zoo:model", tries, out="out", metric="zoo:score", executor=here)
    assert [row.error for row in found.rows] == ["", ""]
    assert found.rows[1].costs["parameters"] < found.rows[0].costs["parameters"]


def test_a_pass_that_is_left_out_is_tried_once(folder: Path, here: Executor) -> None:
    recipe = {"passes": [{"quantize": {"scheme": "int8"}}, "canonicalize"]}
    grid = Grid(recipe, {"quantize": [None], "quantize.scheme": ["int8", "int4"]})
    assert len(sweep("zoo:model", grid, out="out", executor=here).rows) == 1


def test_latency_is_measured_last_and_once(folder: Path, here: Executor) -> None:
    asked: dict[str, Any] = {"target": "onnxruntime", "latency": True, "seconds": 0.01, "executor": here}
    found = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", **asked)
    assert found.definition.costs == ("latency_ms",)
    assert all(row.costs["latency_ms"] > 0 and row.costs["file_bytes"] > 0 for row in found.rows)
    again = sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", **asked)
    assert again.rows == found.rows
    assert not (folder / "out" / "points" / found.rows[0].key / "artifact").exists()


def test_what_is_kept_runs(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", ["int8"], out="out", data="zoo:batches", target="onnxruntime", keep=True, executor=here)
    kept = folder / "out" / "points" / found.rows[0].key
    artifact = ts.sources.open_artifact(kept / "artifact")
    batch = next(iter(load_data("zoo:batches")))
    assert torch.isfinite(artifact.run(batch)).all()
    assert ts.load(kept / "program.tersor").cost().parameter_bytes == found.rows[0].costs["bytes"]


def test_a_target_that_does_not_take_a_try_is_an_error_of_the_try(folder: Path, here: Executor) -> None:
    found = sweep("zoo:model", ["float"], out="out", target="neon", executor=here)
    assert "fake_quant" in found.rows[0].error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_ends_the_sweep_and_is_no_fault_of_a_try(
    folder: Path, here: Executor, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save, saved = ts.Program.save, list[Path]()

    def fails_on_points(program: ts.Program, path: Path) -> Path:
        if "points" in path.parts:
            saved.append(path)
            raise ArchiveError(f"{path} could not be written: {error}") from error
        return save(program, path)

    monkeypatch.setattr(ts.Program, "save", fails_on_points)
    with pytest.raises(OSError, match="No space left"):
        sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", executor=here)
    assert saved
    assert Sweep.load("out").pending == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"latency": True}, "target"),
        ({"costs": ["money"]}, "money"),
        ({"costs": ["latency_ms"]}, "latency=True"),
        ({"costs": ["file_bytes"]}, "target"),
        ({"target": "onxruntime"}, "onnxruntime"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(folder: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        sweep("zoo:model", SCHEMES, out="out", data="zoo:batches", **asked)
    assert not (folder / "out").exists()


def test_two_sweeps_do_not_share_a_folder(folder: Path, here: Executor) -> None:
    with Folder(folder / "out").locked(), pytest.raises(RecipeError, match="another sweep runs"):
        sweep("zoo:model", ["float"], out="out", executor=here)
    assert sweep("zoo:model", ["float"], out="out", executor=here).rows


def test_a_folder_without_a_sweep_says_so(folder: Path) -> None:
    with pytest.raises(ArchiveError, match=r"sweep\.json"):
        Sweep.load(folder)
    (folder / "sweep.json").write_text('{"tersor_sweep": 9}')
    with pytest.raises(ArchiveError, match="not the definition"):
        Sweep.load(folder)


# -- tables ----------------------------------------------------------------------------------------------------------


def made(*rows: Outcome, better: Better | None = None, costs: tuple[str, ...] = ("bytes",)) -> Sweep:
    metric = None if better is None else ts.run_record.Metric("loss", better)
    points = tuple(Planned(row.key, row.name) for row in rows)
    return Sweep(Definition("net", (*points, Planned("z", "later")), costs, metric), rows)


def test_a_metric_that_is_to_shrink_turns_the_front() -> None:
    rows = (Outcome("a", "a", costs={"bytes": 1}, metric=5.0), Outcome("b", "b", costs={"bytes": 2}, metric=9.0))
    assert made(*rows, better=Better.LOWER).front == rows[:1]
    assert made(*rows, better=Better.HIGHER).front == rows


def test_the_table_says_what_is_to_go_and_what_a_clock_is_worth() -> None:
    row = Outcome("a", "a", costs={"bytes": 1, "latency_ms": 2.5}, sqnr=math.inf, clock=Clock.EMULATED)
    text = as_text(made(row, costs=("latency_ms",)), width=80)
    assert "1 to go" in text
    assert "2.5 ms (emulated)" in text
    assert "time of a stand-in" in text
    assert "equal" in text


def test_csv_and_json_hold_the_figures() -> None:
    rows = (
        Outcome("a", 'a, "quoted"', {"x.y": "1"}, {"bytes": 10.0}, 0.5, 20.0, seconds=1.25),
        Outcome("b", "b", error="it broke\nbadly"),
    )
    found = made(*rows, better=Better.HIGHER)
    first, second = csv.DictReader(io.StringIO(found.to_csv()))
    assert first["name"] == 'a, "quoted"'
    assert (first["x.y"], first["bytes"], first["metric"], first["on_front"]) == ("1", "10", "0.5", "yes")
    assert (second["error"], second["on_front"], second["bytes"]) == ("it broke\nbadly", "no", "")
    assert found.to_json()["rows"][0]["costs"] == {"bytes": 10.0}


def test_pictures_and_pages_of_the_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xml.etree import ElementTree

    rows = (
        Outcome("a", "<a>", costs={"bytes": 1.0}, sqnr=10.0),
        Outcome("b", "b", costs={"bytes": 2.0}, sqnr=20.0),
        Outcome("c", "c", costs={"bytes": 3.0}, sqnr=15.0),
        Outcome("d", "d", costs={"bytes": 3.0}, sqnr=math.inf),
        Outcome("e", "e", error="broke"),
    )
    picture = ElementTree.parse(made(*rows).save(tmp_path / "front.svg")).getroot()
    kinds = [circle.get("class") for circle in picture.iter("{http://www.w3.org/2000/svg}circle")]
    assert sorted(map(str, kinds)) == ["dot", "dot on", "dot on"]
    assert made().save(tmp_path / "none.svg").exists()
    assert made(*rows).save(tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "a sweep of 6 tries" in made(*rows).save(tmp_path / "front.html").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        made(*rows).save(tmp_path / "no.png")
    with pytest.raises(RecipeError, match=r"\.html, \.svg, \.png"):
        made().save(tmp_path / "table.xlsx")
    assert not (tmp_path / "no.png").exists()
