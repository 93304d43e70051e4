"""The target as users meet it: what it writes, opens and refuses."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tersor as ts
from tersor.backends.base import Unsupported
from tersor.backends.hls.artifact import HlsArtifact
from tersor.backends.hls.backend import Hls
from tersor.backends.hls.toolchain import find_compiler
from tersor.ir.errors import ArchiveError, LoweringError, MissingDependencyError, SignatureError
from tersor.ir.origin import KEY, Origin
from tersor.ir.program import Program
from tersor.passes.quantization.placement import Coverage

from .models import Mixed, jet_tagger, quantized

FILES = {"artifact.json", "folding.json", "hls", "interface.json", "model.qonnx.onnx", "report.json", "report.txt"}


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(7)
    return quantized(jet_tagger(), (1, 16))


@pytest.fixture(scope="module")
def folder(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lowered")
    ts.lower(program, Hls(cycles=64), out)
    return out


def test_what_is_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    report = json.loads((folder / "report.json").read_text())
    assert report["interval"] <= 64
    assert report["calibration"].startswith("uncalibrated")
    assert {"lut", "dsp", "bram"} <= set(report["estimates"])
    text = (folder / "report.txt").read_text()
    assert "zu3eg" in text
    assert all(row["name"] in text for row in report["layers"])
    script = (folder / "hls" / "build.tcl").read_text()
    assert all(word in script for word in ("csim_design", "csynth_design", "export_design", "xczu3eg-sbva484-1-e"))
    top = (folder / "hls" / "model.cpp").read_text()
    assert "#pragma HLS DATAFLOW" in top
    assert "depth = " in top


def test_lowering_again_gives_the_same_bytes_and_replaces(program: Program, folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        ts.lower(program, Hls(cycles=64), tmp_path)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "simulate":
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_an_edited_folding_is_taken(program: Program, folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "folding.json").read_text())
    layer = next(iter(document["layers"].values()))
    layer.update(pe=32, simd=16)
    edited = tmp_path / "folding.json"
    edited.write_text(json.dumps(document))
    ts.lower(program, Hls(folding=edited), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["layers"][0]["pe"], report["layers"][0]["simd"]) == (32, 16)


@pytest.mark.usefixtures("compiler")
def test_the_testbench_passes_and_a_wrong_vector_fails(folder: Path, tmp_path: Path) -> None:
    sources = folder / "hls"
    words = [find_compiler(), "-std=c++14", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    files = [sources / "testbench.cpp", sources / "model.cpp"]
    program = tmp_path / "testbench"
    subprocess.run(
        [*words, f"-I{sources}", f"-I{sources / 'simulation'}", *map(str, files), "-o", str(program)], check=True
    )
    right = subprocess.run([program, sources / "golden.txt"], capture_output=True, text=True, check=False)
    assert right.returncode == 0
    assert "0 of 25 values differ" in right.stdout
    numbers = (sources / "golden.txt").read_text().split()
    numbers[-1] = str(int(numbers[-1]) ^ 1)
    (tmp_path / "golden.txt").write_text(" ".join(numbers))
    wrong = subprocess.run([program, tmp_path / "golden.txt"], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0
    assert "1 of 25 values differ" in wrong.stdout


@pytest.mark.usefixtures("compiler")
def test_an_artifact_opens_without_its_program(folder: Path) -> None:
    opened = Hls.open(folder)
    x = torch.randn(3, 16)
    assert tuple(opened.run(x).shape) == (3, 5)
    assert opened.report.target == "hls"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_no_grid_has_are_refused(folder: Path, value: float) -> None:
    x = torch.zeros(3, 16)
    x[2, 5] = value
    with pytest.raises(SignatureError, match=r"'input' has a value that is on no integer grid") as raised:
        Hls.open(folder).run(x)
    assert f"{value} at [2, 5]" in str(raised.value)


def test_a_damaged_artifact_is_refused(program: Program, tmp_path: Path) -> None:
    ts.lower(program, Hls(cycles=64), tmp_path)
    (tmp_path / "interface.json").write_text("{}")
    with pytest.raises(ArchiveError, match=r"interface\.json"):
        Hls.open(tmp_path)


def test_no_compiler_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, program: Program, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++" in str(Hls.missing())
    artifact = ts.lower(program, Hls(cycles=64), tmp_path / "out")  # which needs none
    with pytest.raises(MissingDependencyError, match=r"apt-get install g\+\+"):
        artifact.run(torch.randn(1, 16))
    assert isinstance(artifact, HlsArtifact)
    with pytest.raises(MissingDependencyError, match="Vitis"):
        artifact.synthesize()


REPORT = """<profile><AreaEstimates><Resources><BRAM_18K>3</BRAM_18K><DSP>12</DSP><FF>9</FF><LUT>4321</LUT></Resources>
</AreaEstimates><PerformanceEstimates><SummaryOfOverallLatency><Worst-caseLatency>99</Worst-caseLatency>
<Interval-max>64</Interval-max></SummaryOfOverallLatency></PerformanceEstimates></profile>"""


def fake_vitis(folder: Path, name: str, status: int) -> None:
    """A stand-in that writes a report where Vitis does."""
    script = folder / name
    script.write_text(
        '#!/bin/sh\necho ran "$@"\nmkdir -p project/solution/syn/report\n'
        f"cat > project/solution/syn/report/csynth.xml <<'EOF'\n{REPORT}\nEOF\nexit {status}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("name", ["vitis_hls", "vitis-run"])
def test_synthesis_is_set_beside_the_estimate(
    name: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = ts.lower(program, Hls(cycles=64), tmp_path / "out")
    assert isinstance(artifact, HlsArtifact)
    fake_vitis(tmp_path, name, 0)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    compared = artifact.synthesize()
    assert compared.synthesized == {"lut": 4321, "dsp": 12, "bram": 3, "interval": 64, "latency": 99}
    assert set(compared.estimated) == set(compared.synthesized)
    assert "4321" in str(compared)
    assert json.loads((tmp_path / "out" / "synthesis.json").read_text())["synthesized"]["dsp"] == 12


def test_a_failed_synthesis_says_what_vitis_said(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = ts.lower(program, Hls(cycles=64), tmp_path / "out")
    assert isinstance(artifact, HlsArtifact)
    fake_vitis(tmp_path, "vitis_hls", 1)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LoweringError, match=r"ran -f build\.tcl"):
        artifact.synthesize()


# -- refusals --------------------------------------------------------------------------------------------------------


def refusal(model: nn.Module, shape: tuple[int, ...], coverage: Coverage = Coverage.EVERYTHING) -> str:
    x = torch.randn(shape)
    program = ts.PassManager([ts.Quantize(ts.INT8, calibration=[x], coverage=coverage)]).run(
        ts.trace(model.eval(), (x,))
    )
    with pytest.raises(LoweringError) as raised:
        ts.lower(program.program, "hls")
    return str(raised.value)


class Floating(nn.Module):
    """An operator without an integer form in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.cumsum(self.first(x), 1))
        return result


class Attends(nn.Module):
    """A product of two matrices that are both computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        result: Tensor = self.first(y @ y.transpose(1, 2) @ y)
        return result


class Padded(nn.Module):
    """Padding that no layer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = F.pad(y, (0, 0, 0, 0, 2, 2)) + torch.cat([y, y], 1)
        return result


def test_a_node_of_no_known_place_is_named_without_one() -> None:
    program = ts.trace(Floating().eval(), (torch.randn(2, 4),))
    node = next(node for node in program.graph.nodes if node.op == "call_function")
    node.meta[KEY] = Origin()
    assert str(Unsupported.of(node, "no")) == f"%{node.name} = linear: no"


def test_float_islands_are_named() -> None:
    text = refusal(Floating(), (2, 4))
    assert "cumsum has no integer form" in text
    assert "test_backend.py" in text
    assert "lower to onnxruntime" in text
    assert "coverage" not in text


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (Attends(), (1, 3, 4), "has no dataflow form"),
        (Padded(), (1, 4, 3, 3), "reads what is padded"),
        (nn.Conv2d(2, 3, 1), (2, 2, 4, 4), "one at a time"),
        (nn.Conv3d(2, 3, 1), (1, 2, 3, 3, 3), "two dimensions beside channels"),
    ],
)
def test_what_has_no_dataflow_form_is_named(model: nn.Module, shape: tuple[int, ...], words: str) -> None:
    text = refusal(model, shape)
    assert words in text
    assert "try:" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "zu3"}, "unknown part"),
        ({"top": "Model"}, "C\\+\\+ function"),
        ({"top": "main"}, "C\\+\\+ function"),
        ({"clock": 0.0}, "positive"),
        ({"cycles": -1}, "positive"),
        ({"cycles": 5, "folding": "folding.json"}, "cycles"),
    ],
)
def test_wrong_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(LoweringError, match=words):
        Hls(**options)  # type: ignore[arg-type]  # that is the point


def test_dynamic_batches_run_frame_by_frame(tmp_path: Path, compiler: str) -> None:
    torch.manual_seed(7)
    batches = [torch.randn(4, 16) for _ in range(2)]
    program = ts.trace(jet_tagger(), (batches[0],), dynamic={"input": {0: "batch"}})
    artifact = ts.compress(
        program, target=Hls(cycles=64), out=tmp_path, passes=[
            ts.Quantize(ts.INT8, calibration=batches, coverage=Coverage.EVERYTHING)
        ],
    )  # fmt: skip
    assert tuple(artifact.run(batches[0]).shape) == (4, 5)


def test_the_artifact_of_two_outputs(tmp_path: Path) -> None:
    torch.manual_seed(7)
    artifact = ts.lower(quantized(Mixed(), (1, 3, 16, 12)), Hls("zynq7020"), tmp_path)
    assert len(json.loads((tmp_path / "interface.json").read_text())["outputs"]) == 2
    assert artifact.report.integer_share == 1.0
