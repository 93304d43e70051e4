"""The analysis against programs in which one layer alone is quantized, and a culprit that was planted."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.analysis_picture import length
from tersor.cli import cli
from tersor.ir.errors import CalibrationError, MissingDependencyError, PassError, RecipeError
from tersor.ir.quantization import Observer
from tersor.passes.compare import difference

LAYERS = ("first", "second", "third")


class Net(nn.Module):
    """Three linears with a norm and a residual between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.second, self.third = nn.Linear(16, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        y: Tensor = self.third(torch.tanh(self.second(self.norm(x))))
        return y


def net(culprit: str | None = None) -> tuple[ts.Program, list[Tensor]]:
    torch.manual_seed(0)
    model = Net().eval()
    if culprit is not None:
        with torch.no_grad():
            getattr(model, culprit).weight[:, 0] *= 60.0
    batches = [torch.randn(8, 16) for _ in range(3)]
    return ts.trace(model, (batches[0],), dynamic={"x": {0: "batch"}}), batches


def quantized(program: ts.Program, batches: list[Tensor], skip: tuple[str, ...] = ()) -> ts.Program:
    step = ts.Quantize(
        calibration=batches, smooth=False, correct_bias=False, skip=skip, observer=Observer.MIN_MAX, pair_safe=False
    )
    return ts.PassManager([step]).run(program).program


def test_the_error_at_the_output_is_that_of_the_layer_quantized_alone() -> None:
    program, batches = net()
    found = ts.analyze(quantized(program, batches), batches)
    for row in found.rows:
        others = tuple(name for name in LAYERS if name != row.module)
        alone = quantized(program, batches, others)
        with torch.no_grad():
            exact = [program(batch) for batch in batches]
            sqnr = difference(exact, [alone(batch) for batch in batches]).sqnr
        assert row.output == pytest.approx(sqnr, abs=0.05)
    with torch.no_grad():
        whole = difference(exact, [quantized(program, batches)(batch) for batch in batches]).sqnr
    assert found.sqnr == pytest.approx(whole, abs=0.05)
    assert sum(row.share for row in found.rows) == pytest.approx(1)


def test_own_errors_ranges_and_clipping_are_those_of_the_layer() -> None:
    program, batches = net()
    found = ts.analyze(quantized(program, batches[:1]), batches)
    row = found.rows[0]
    assert row.module == "first"
    everything = torch.cat(batches)
    low, high = float(batches[0].min()), float(batches[0].max())
    assert row.low == pytest.approx(low, rel=0.02)
    assert row.high == pytest.approx(high, rel=0.02)
    assert (row.seen_low, row.seen_high) == (float(everything.min()), float(everything.max()))
    assert row.clipped == pytest.approx(float(((everything < low) | (everything > high)).float().mean()), abs=0.01)
    assert row.own < 45
    assert row.here == pytest.approx(row.own, abs=0.05)


@pytest.mark.parametrize("culprit", LAYERS[:2])
def test_a_planted_culprit_is_named_first(culprit: str) -> None:
    program, batches = net(culprit)
    step = ts.Quantize(ts.INT4, calibration=batches, smooth=False, equalize=False, round_weights=False)
    mixed = ts.PassManager([step]).run(program).program
    found = ts.analyze(mixed, batches, reference=program)
    assert found.worst[0].module == culprit
    assert len(found.worst) < 3


def test_weights_rounded_for_good_show_against_the_float_program() -> None:
    program, batches = net()
    rounded = ts.PassManager([ts.QuantizeWeights(block=16, calibration=batches, scale=False)]).run(program).program
    blind = ts.analyze(rounded, batches)
    seen = ts.analyze(rounded, batches, reference=program)
    assert all(math.isinf(row.own) or row.own > 100 for row in blind.rows)
    assert all(row.own < 50 for row in seen.rows)
    with torch.no_grad():
        sqnr = difference([program(b) for b in batches], [rounded(b) for b in batches]).sqnr
    assert seen.sqnr == pytest.approx(sqnr, abs=0.05)


def test_smoothing_is_no_error() -> None:
    program, batches = net()
    with torch.no_grad():
        weight = program.tensor("norm.weight").clone()
        weight[3] *= 50
        program.set_tensor("norm.weight", weight)
    smoothed = ts.PassManager([ts.Quantize(calibration=batches)]).run(program).program
    found = ts.analyze(smoothed, batches, reference=program)
    assert all(row.own > 30 for row in found.rows)


def test_the_report_is_a_table_json_and_pictures(tmp_path: Path) -> None:
    program, batches = net("second")
    found = ts.analyze(quantized(program, batches), batches)
    assert "at output" in str(found)
    data = json.loads(json.dumps(found.to_json()))
    assert data["worst"] == [row.node for row in found.worst]
    picture = ElementTree.parse(found.save(tmp_path / "a.svg")).getroot()
    names = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert all(row.node in names for row in found.rows)
    HTMLParser().feed(found.save(tmp_path / "a.html").read_text())
    with pytest.raises(RecipeError, match="not a picture"):
        found.save(tmp_path / "a.doc")
    assert all(0 <= length(row) <= 1 for row in found.rows)


def test_a_png_has_a_bar_for_each_node_and_the_culprit_in_orange(tmp_path: Path) -> None:
    """Read back by matplotlib: orange somewhere in the row of each node that matters, and nowhere else."""
    from matplotlib import image

    program, batches = net("second")
    found = ts.analyze(quantized(program, batches), batches)
    pixels = torch.from_numpy(image.imread(found.save(tmp_path / "a.png"))[..., :3])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    orange = (pixels - torch.tensor([0xC4, 0x60, 0x2F]) / 255).abs().amax(-1) < 0.02
    blue = (pixels - torch.tensor([0x2C, 0x82, 0x96]) / 255).abs().amax(-1) < 0.02
    marked = {row.node for row in found.worst}
    assert _bars(orange) == sum(row.node in marked and length(row) > 0 for row in found.rows)
    assert _bars(blue) == sum(row.node not in marked and length(row) > 0 for row in found.rows)


def _bars(pixels: Tensor) -> int:
    """Runs of rows that hold such a pixel."""
    rows = pixels.any(1).int()
    return int((torch.diff(rows, prepend=torch.zeros(1, dtype=torch.int32)) == 1).sum())


def test_a_png_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    program, batches = net()
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        ts.analyze(quantized(program, batches), batches).save(tmp_path / "a.png")


def test_what_cannot_be_analyzed_is_said() -> None:
    program, batches = net()
    with pytest.raises(PassError, match="nothing is quantized"):
        ts.analyze(program, batches)
    with pytest.raises(CalibrationError, match="empty"):
        ts.analyze(quantized(program, batches), [])


def test_from_the_shell(tmp_path: Path) -> None:
    from click.testing import CliRunner

    program, batches = net("third")
    saved = quantized(program, batches).save(tmp_path / "q.tersor")
    exact = program.save(tmp_path / "f.tersor")
    arguments = ["analyze", str(saved), "-f", str(exact), "--picture", str(tmp_path / "p.html")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "of the noise" in " ".join(result.output.split())
    assert (tmp_path / "p.html").exists()
    result = CliRunner().invoke(cli, ["analyze", str(saved), "--json"])
    assert json.loads(result.output)["nodes"]
