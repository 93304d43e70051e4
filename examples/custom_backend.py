"""A target of one's own: networks of linear layers as one file of plain C, with the bits of the integer stage."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

import tersor as ts
from tersor.ir.errors import LoweringError, MissingDependencyError
from tersor.passes.preferences import Preferences

operators = torch.ops.tersor

# What the target computes: a rule an operator, from its arguments to what stands in the loop over a row's values.


def quantize(x: str, scale: str, zero_point: int, low: int, high: int) -> str:
    """Float to int8."""
    return f"clamp(rintf({x}[i] / {scale}[0]) + {zero_point}, {low}, {high})"


def int_linear(x: str, weight: str, bias: str | None, zero_point: int) -> str:
    """Int8 to an int32 accumulator, by a function below."""
    return f"dot({x}, {weight} + i * LENGTH({x}), LENGTH({x}), {zero_point}) + {f'{bias}[i]' if bias else 0}"


def int_mul(a: str, b: str, zero_point_a: int, zero_point_b: int) -> str:
    """A product of two values, of which one may be shorter, as where outlier channels were smoothed."""
    return f"({a}[i % LENGTH({a})] - {zero_point_a}) * ({b}[i % LENGTH({b})] - {zero_point_b})"


def requantize(acc: str, multiplier: str, zero_point: int, low: int, high: int) -> str:
    """An accumulator to int8: a product in float32, rounded half to even. A single multiplier serves all."""
    return f"clamp(rintf((float){acc}[i] * {multiplier}[i % LENGTH({multiplier})]) + {zero_point}, {low}, {high})"


def int_lookup(x: str, table: str) -> str:
    """Any function of one int8 value."""
    return f"{table}[{x}[i] + 128]"


def dequantize(q: str, scale: str, zero_point: int, axis: int | None) -> str:
    """Integers to float: int8 on one grid, an accumulator with a scale a column."""
    return f"(float)({q}[i] - {zero_point}) * {scale}[i % LENGTH({scale})]"


RULES: dict[object, Callable[..., str]] = {
    operators.quantize.default: quantize,
    operators.int_linear.default: int_linear,
    operators.int_mul.default: int_mul,
    operators.requantize.default: requantize,
    operators.int_lookup.default: int_lookup,
    operators.dequantize.default: dequantize,
}

TYPES = {torch.float32: "float", torch.int8: "int8_t", torch.int32: "int32_t"}

HEAD = """\
#include <math.h>
#include <stdint.h>
#define LENGTH(a) ((int)(sizeof(a) / sizeof((a)[0])))

static int8_t clamp(float x, float low, float high) { return (int8_t)(x < low ? low : x > high ? high : x); }

static int32_t dot(const int8_t *x, const int8_t *w, int n, int zero_point) {
    int32_t sum = 0;
    for (int k = 0; k < n; ++k) sum += (x[k] - zero_point) * w[k];
    return sum;
}
"""


def to_c(program: ts.Program) -> str:
    """The whole program as C: tensors, then `run`, which computes row after row."""
    (given,), (result,) = program.placeholders, program.outputs
    tensors, steps = [], []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr":
            items = ", ".join(map(number, program.tensor(str(node.target)).flatten().tolist()))
            tensors.append(f"static const {TYPES[value.dtype]} {name(node)}[] = {{{items}}};")
        elif node.op == "call_function":
            steps.append(f"        {TYPES[value.dtype]} {name(node)}[{value.shape[1]}];")
            loop = f"for (int i = 0; i < {value.shape[1]}; ++i)"
            steps.append(f"        {loop} {name(node)}[i] = {RULES[node.target](*map(name, node.args))};")
    width, columns = given.meta["val"].shape[1], result.meta["val"].shape[1]
    body = [
        f"const int columns = {columns};",
        "void run(int rows, const float *inputs, float *outputs) {",
        "    for (int row = 0; row < rows; ++row) {",
        f"        float {name(given)}[{width}];",
        f"        for (int i = 0; i < {width}; ++i) {name(given)}[i] = inputs[row * {width} + i];",
        *steps,
        f"        for (int i = 0; i < {columns}; ++i) outputs[row * {columns} + i] = {name(result)}[i];",
        "    }",
        "}",
    ]
    return "\n".join([HEAD, *tensors, "", *body, ""])


def name(argument: object) -> object:
    """What C calls the value of a node; numbers and None stay."""
    return f"{argument.name}_" if isinstance(argument, fx.Node) else argument


def number(value: object) -> str:
    """A number as C has it, floats to the last bit."""
    return f"{value.hex()}f" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class PlainC(ts.Backend):
    """One C file, for networks of linear layers and functions of one value.

    compiler: what makes a library of it when it runs here.
    """

    name: ClassVar[str] = "plain_c"
    summary: ClassVar[str] = "plain C for networks of linear layers"

    compiler: str = "cc"

    @property
    def preferences(self) -> Preferences:
        return Preferences(coverage=ts.Coverage.EVERYTHING, recipe="int8_integer", floats=False)

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("cc") else "a C compiler"

    def passes(self) -> tuple[ts.Pass, ...]:
        return (ts.LowerToInteger(),)

    def supports(self, program: ts.Program, node: fx.Node) -> ts.Unsupported | None:
        if node.target not in RULES:
            hint = "Quantize(..., coverage=Coverage.EVERYTHING) puts on integers what can be"
            return ts.Unsupported.of(node, "plain_c has no rule for it", hint)
        if node.meta["val"].dim() != 2:
            return ts.Unsupported.of(node, f"a value has rows and columns, not {node.meta['val'].dim()} dimensions")
        if node.target is operators.dequantize.default and node.args[3] not in (None, 1):
            return ts.Unsupported.of(node, "it has a scale a row")
        return None

    def emit(self, program: ts.Program, out: Path) -> ts.Artifact:
        outputs = [node for node in program.outputs if node.target is operators.dequantize.default]
        inputs = [spec for spec in program.signature.inputs if spec.dtype is torch.float32 and len(spec.shape) == 2]
        if len(program.placeholders) != 1 or len(inputs) != 1 or len(program.outputs) != 1 or len(outputs) != 1:
            found = program.signature.describe()
            raise LoweringError("plain_c takes one float32 matrix and gives one", found=found)
        draft = out / ".model.c"
        draft.write_text(to_c(program))
        source = draft.replace(out / "model.c")
        multiply = [node for node in program.graph.nodes if node.target is operators.int_linear.default]
        costs = program.cost().nodes
        audit = tuple(ts.AuditRow(node.name, "int_linear", "int8", costs[node.name].macs) for node in multiply)
        report = ts.LoweringReport(self.name, audit, {source.name: source.stat().st_size})
        ts.write_manifest(out, program.signature, report, [source])
        return PlainCArtifact(out, program.signature, report, self.compiler)

    @classmethod
    def open(cls, folder: Path) -> ts.Artifact:
        return PlainCArtifact(folder, *ts.read_manifest(folder, cls.name))


class PlainCArtifact(ts.Artifact):
    """`model.c` in a folder; compiled when it first runs."""

    def __init__(self, path: Path, signature: ts.Signature, report: ts.LoweringReport, compiler: str = "cc") -> None:
        super().__init__(path, signature, report)
        self.compiler = compiler

    def run_flat(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run on float32[rows, columns]. Raises MissingDependencyError without a compiler."""
        (x,) = (tensor.detach().contiguous() for tensor in inputs)
        result = torch.empty(len(x), ctypes.c_int.in_dll(self._library, "columns").value)
        self._library.run(len(x), ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(result.data_ptr()))
        return [result]

    @cached_property
    def _library(self) -> ctypes.CDLL:
        compiler = shutil.which(self.compiler)
        if compiler is None:
            raise MissingDependencyError(f"there is no {self.compiler!r}", hint="install a C compiler")
        with tempfile.TemporaryDirectory() as folder:
            library = f"{folder}/model.so"
            # Without -ffp-contract=off a compiler may fuse a product and a sum, and round once where the definition
            # rounds twice.
            command = [compiler, "-std=c11", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-o", library]
            subprocess.run([*command, str(self.path / "model.c"), "-lm"], check=True)
            return ctypes.CDLL(library)


def main(out: str = "build/plain_c") -> None:
    """Lower a small network, run it, and compare the bits with those of the program."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 4))
    batches = [torch.randn(64, 16) for _ in range(4)]
    program = ts.trace(model, batches[0], dynamic={"input": {0: "batch"}})
    quantize_all = ts.Quantize(calibration=batches, coverage=ts.Coverage.EVERYTHING)
    integer = ts.PassManager([quantize_all, ts.LowerToInteger()]).run(program).program

    artifact = ts.lower(integer, target=PlainC(), out=out)
    x = torch.randn(1000, 16)
    same = torch.equal(artifact.run(x), integer(x))
    print(integer)
    print(f"{artifact.path}/model.c: {artifact.report.files['model.c']} bytes; the same bits on 1000 inputs: {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
