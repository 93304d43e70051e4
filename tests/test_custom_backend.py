"""A target of one's own, written with what is public: its bits, its refusals, its names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import tersor as ts
from tersor.backends.registry import TARGETS
from tersor.cli import cli
from tersor.ir.errors import ArchiveError, LoweringError, RecipeError
from tersor.sources import open_artifact

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "writing_a_backend.md"
EXAMPLE = ROOT / "examples" / "custom_backend.py"
WHERE = "examples.custom_backend:PlainC"


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def plain_c() -> ts.Backend:
    return TARGETS.resolve(WHERE)()


class Twice(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.linear(y)


def integer_program(model: nn.Module, width: int, rows: int = 32) -> ts.Program:
    torch.manual_seed(0)
    batches = [torch.randn(rows, width) for _ in range(2)]
    name = "input" if isinstance(model, nn.Sequential) else "x"
    program = ts.trace(model, batches[0], dynamic={name: {0: "rows"}})
    steps = [ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING), ts.LowerToInteger()]
    return ts.PassManager(steps, progress=False).run(program).program


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Hardtanh, nn.LeakyReLU])
def test_the_bits_are_those_of_the_integer_stage(activation: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), activation(), nn.Linear(33, 5, bias=False), activation(), nn.Linear(5, 3))
    program = integer_program(model, 7)
    artifact = ts.lower(program, target=plain_c(), out=tmp_path)
    x = 2 * torch.randn(20_000, 7)
    assert torch.equal(artifact.run(x), program(x))
    assert torch.equal(plain_c().open(tmp_path).run(x), program(x))
    assert artifact.report.integer_share == 1.0


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    ts.lower(integer_program(nn.Sequential(nn.Linear(4, 2)), 4), target=plain_c(), out=tmp_path)
    with (tmp_path / "model.c").open("a") as file:
        file.write("// edited\n")
    with pytest.raises(ArchiveError, match=r"model\.c is not the file"):
        plain_c().open(tmp_path)


def test_what_it_does_not_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    image = torch.randn(1, 3, 8, 8)
    program = ts.trace(nn.Sequential(nn.Conv2d(3, 4, 3)), image)
    with pytest.raises(ts.TersorError, match="plain_c has no rule for it") as caught:
        ts.compress(program, target=plain_c(), calibration=[image], out=tmp_path / "out")
    assert "%int_conv = int_conv" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_more_than_one_input_is_refused(tmp_path: Path) -> None:
    program = ts.trace(Twice(), (torch.randn(4, 2), torch.randn(4, 2)))
    with pytest.raises(ts.TersorError, match="takes one float32 matrix"):
        ts.compress(program, target=plain_c(), calibration=[(torch.randn(4, 2), torch.randn(4, 2))], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_float_program_is_refused_with_what_to_run(tmp_path: Path) -> None:
    program = ts.trace(nn.Linear(4, 2), torch.randn(4, 4))
    with pytest.raises(LoweringError, match="does not take a program at stage float") as caught:
        ts.lower(program, target=plain_c(), out=tmp_path)
    assert "ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING)" in str(caught.value)


def test_a_class_is_named_with_its_module(tmp_path: Path) -> None:
    program = integer_program(nn.Sequential(nn.Linear(4, 2)), 4)
    assert ts.lower(program, WHERE, tmp_path).report.target == "plain_c"
    with pytest.raises(RecipeError, match="is not a target"):
        ts.lower(program, "examples.custom_backend:PlainCArtifact", tmp_path)
    with pytest.raises(ts.TersorError, match="cannot be loaded"):
        ts.lower(program, "no_such_module:PlainC", tmp_path)


def test_an_entry_point_gives_it_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "mychip-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mychip\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tersor.backends]\nplain_c = {WHERE}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert TARGETS.find("plain_c") is type(plain_c())
    assert "plain C for networks" in CliRunner().invoke(cli, ["targets"]).output
    program = integer_program(nn.Sequential(nn.Linear(4, 2)), 4)
    ts.lower(program, "plain_c", tmp_path / "out")
    x = torch.randn(3, 4)
    assert torch.equal(open_artifact(tmp_path / "out").run(x), program(x))


def test_the_page_shows_the_example() -> None:
    """Each piece of the page up to its use is a piece of the file, in order, and together they are all of it."""
    page = PAGE.read_text(encoding="utf-8")
    pieces = re.findall(r"^```python\n(.*?)\n```$", page[: page.index("## Use it")], re.MULTILINE | re.DOTALL)
    squeezed = re.sub(r"\n+", "\n", "\n".join(pieces))
    text = re.sub(r"\n+", "\n", EXAMPLE.read_text(encoding="utf-8"))
    text = text[text.index("from __future__") : text.index("def main(")].strip()
    assert squeezed.strip() == text


class Scaled(nn.Module):
    """A linear whose columns are multiplied by constants."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.register_buffer("columns", torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x)) * self.get_buffer("columns")


def test_a_product_with_constants(tmp_path: Path) -> None:
    integer = integer_program(Scaled(), 4)
    assert "int_mul" in str(integer)
    x = torch.randn(1000, 4)
    assert torch.equal(ts.lower(integer, plain_c(), tmp_path).run(x), integer(x))
