"""Programs on another device: the passes, the integer bits, files and errors, compared with the CPU.

Quick tests take the stand-in of `elsewhere`, so every machine runs them; those marked `gpu` take a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import SignatureError, TersorError, TraceError, VerificationError
from tersor.ir.placement import misplaced
from tersor.passes.compare import node_values
from tersor.passes.quantization.awq import AWQ
from tersor.passes.quantization.equalize_layers import EqualizeLayers
from tersor.passes.quantization.gptq import GPTQ
from tersor.passes.quantization.learn_rounding import LearnRounding
from tersor.passes.quantization.smooth_quant import SmoothQuant

from .elsewhere import ELSEWHERE, elsewhere

DATA = [torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
LABELLED = [(x, torch.arange(8) % 10) for x in DATA]
OPTIONS = ts.Training(epochs=1, progress=False)


class Net(nn.Module):
    """A residual network with what a device has to hold: norms, a range made in the graph, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.places = nn.Embedding(8, 8)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.hardswish(x + self.second(x))
        tokens = x.mean(3).transpose(1, 2) + self.places(torch.arange(8, device=x.device))
        classes: Tensor = self.last(tokens.mean(1))
        return classes


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, labels)


@pytest.fixture(scope="module")
def program() -> ts.Program:
    torch.manual_seed(0)
    return ts.trace(Net().eval(), (DATA[0],), dynamic={"x": {0: "batch"}})


@pytest.fixture
def there() -> Iterator[torch.device]:
    with elsewhere() as device:
        yield device


def run(program: ts.Program, *passes: ts.Pass) -> ts.Program:
    return ts.PassManager(passes, progress=False).run(program).program


INTEGERS = (torch.int8, torch.int32)
INTEGER = (ts.Quantize(calibration=DATA, coverage=ts.Coverage.EVERYTHING), ts.SnapScales(), ts.LowerToInteger())
WITHOUT_TRAINING: dict[str, tuple[ts.Pass, ...]] = {
    "fold": (ts.Canonicalize(), ts.FoldBatchNorm()),
    "equalize": (ts.FoldBatchNorm(), EqualizeLayers()),
    "integer": INTEGER,
    "smooth": (SmoothQuant(batches=DATA, convolutional=True), AWQ(batches=DATA)),
    "gptq": (ts.Quantize(ts.W4A8, calibration=DATA, round_weights=False), GPTQ(batches=DATA)),
    "magnitude": (ts.PruneChannels(target=ts.Channels(0.5)),),
    "taylor": (ts.PruneChannels(target=ts.Channels(0.5), criterion=ts.Taylor(LABELLED, loss)),),
    "variance": (ts.PruneChannels(target=ts.Channels(0.5), criterion=ts.ActivationVariance(DATA)),),
    "2:4": (ts.PermuteChannels(), ts.Sparsify(ts.NM(2, 4))),
    "wanda": (ts.Sparsify(ts.Unstructured(0.5), criterion=ts.Wanda(DATA)),),
    "sparsegpt": (ts.Sparsify(ts.NM(2, 4), criterion=ts.SparseGPT(DATA)),),
}
TRAINED: dict[str, tuple[ts.Pass, ...]] = {
    "rounding": (ts.Quantize(calibration=DATA), LearnRounding(batches=DATA, training=OPTIONS)),
    "finetune": (ts.Finetune(LABELLED, loss, training=OPTIONS),),
    "distill": (ts.Distill(LABELLED, loss, training=OPTIONS),),
    "quantized": (ts.TrainQuantized(LABELLED, loss, training=OPTIONS), ts.LowerToInteger()),
}


def outputs(program: ts.Program) -> Tensor:
    with torch.no_grad():
        found: Tensor = program(DATA[1].to(program.device))
    return found.cpu()


@pytest.mark.parametrize("name", WITHOUT_TRAINING)
def test_passes_give_elsewhere_what_they_give_here(program: ts.Program, there: torch.device, name: str) -> None:
    passes = WITHOUT_TRAINING[name]
    found = run(program.to(there), *passes)
    assert found.device == there
    assert not list(misplaced(found))
    torch.testing.assert_close(outputs(found), outputs(run(program, *passes)))


def test_the_stand_in_refuses_what_a_gpu_refuses(there: torch.device) -> None:
    x = torch.ones(3).to(there)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).device == there


def test_the_integer_stage_has_the_same_bits_elsewhere(program: ts.Program, there: torch.device) -> None:
    """Also where a division by a number would be a product with its reciprocal, as on CUDA."""
    assert_same_bits(run(program, *INTEGER), there)


def assert_same_bits(program: ts.Program, there: torch.device) -> None:
    """Every int8 and int32 value of every node."""
    expected: dict[str, Tensor] = {}
    node_values(program, [DATA[0]], lambda node, value: expected.update({node.name: value}))
    found: dict[str, Tensor] = {}
    node_values(program.to(there), [DATA[0]], lambda node, value: found.update({node.name: value}))
    integers = [name for name, value in expected.items() if getattr(value, "dtype", None) in INTEGERS]
    assert len(integers) > 5
    assert all(torch.equal(found[name].cpu(), expected[name]) for name in integers)


def test_sums_and_grids_have_the_same_bits_elsewhere(there: torch.device) -> None:
    assert_operators_agree(there)


def assert_operators_agree(there: torch.device) -> None:
    ops = torch.ops.tersor
    left, right = (v.flatten() for v in torch.meshgrid(*[torch.arange(-128, 128, dtype=torch.int8)] * 2, indexing="ij"))
    for scale in (0.0213, 0.007, 0.19):
        grid = (scale, 3, 0.031, -7, 0.0437, 5, -128, 127)
        here = ops.int_add(left, right, *grid)
        assert torch.equal(ops.int_add(left.to(there), right.to(there), *grid).cpu(), here)
        values = torch.linspace(-3, 3, 9973)
        step = torch.tensor(scale)
        here = ops.quantize(values, step, 3, -128, 127)
        assert torch.equal(ops.quantize(values.to(there), step, 3, -128, 127).cpu(), here)
        rows = values[:9900].reshape(99, 100)
        here = ops.fake_quantize_dynamic(rows, True)
        assert torch.equal(ops.fake_quantize_dynamic(rows.to(there), True).cpu(), here)


def test_a_saved_program_is_the_same_file_and_loads_on_the_cpu(
    program: ts.Program, there: torch.device, tmp_path: Path
) -> None:
    here, away = program.save(tmp_path / "a.tersor"), program.to(there).save(tmp_path / "b.tersor")
    assert here.read_bytes() == away.read_bytes()
    assert ts.load(away).device == torch.device("cpu")


def test_lowering_writes_the_same_files(program: ts.Program, there: torch.device, tmp_path: Path) -> None:
    quantized = run(program, ts.Quantize(calibration=DATA))
    files = [ts.lower(p, "onnxruntime", tmp_path / n) for p, n in ((quantized, "a"), (quantized.to(there), "b"))]
    assert len({(artifact.path / "model.onnx").read_bytes() for artifact in files}) == 1
    assert files[1].run(DATA[0].to(there)).device == there


def test_moving_there_and_back_changes_nothing(program: ts.Program, there: torch.device) -> None:
    away = program.to(there)
    assert (program.device, away.device) == (torch.device("cpu"), there)
    assert away.to(there) is away
    assert all(torch.equal(t, away.to("cpu").tensor(name)) for name, t in program.tensors().items())
    assert str(away.to("cpu")) == str(program)


def test_inputs_from_another_device_are_refused(program: ts.Program, there: torch.device) -> None:
    with pytest.raises(SignatureError, match="another device") as caught:
        program.to(there)(DATA[0])
    assert "program.to('cpu')" in str(caught.value.hint)


def test_a_tensor_that_was_left_behind_is_named(program: ts.Program, there: torch.device) -> None:
    away = program.to(there)
    owner = away.module.get_submodule("last")
    owner.bias = nn.Parameter(torch.zeros(10))
    with pytest.raises(VerificationError, match="another device") as caught:
        away.verify()
    assert "last_bias" in str(caught.value.node)


def test_what_is_added_goes_where_the_program_is(program: ts.Program, there: torch.device) -> None:
    away = program.to(there)
    assert away.tensor(away.add_tensor("extra", torch.ones(2))).device == there
    away.set_tensor("last.bias", torch.zeros(10))
    assert away.tensor("last.bias").device == there


def test_a_device_that_is_not_here_is_refused(program: ts.Program) -> None:
    with pytest.raises(TersorError, match="cannot be moved to cuda:99"):
        program.to("cuda:99")


def test_a_model_on_two_devices_is_refused(there: torch.device) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).to(there))
    with pytest.raises(TraceError, match="spread over devices") as caught:
        ts.trace(model, (torch.ones(2, 8),))
    assert str(ELSEWHERE) in str(caught.value.found)


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("there is no GPU here: leave these out with -m 'not gpu'")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*WITHOUT_TRAINING, *TRAINED])
def test_passes_give_on_a_gpu_what_they_give_here(
    program: ts.Program, gpu: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to what other rounding does to 8-bit decisions."""
    passes = {**WITHOUT_TRAINING, **TRAINED}[name]
    model = Net().eval()
    model.load_state_dict(program.tensors(), strict=False)
    away = ts.trace(model.to(gpu), (DATA[0].to(gpu),), dynamic={"x": {0: "batch"}})
    found = run(away, *passes)
    assert found.device == gpu
    at_home = run(program, *passes)  # training takes the GPU, and brings the program back
    assert at_home.device == torch.device("cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    expected = outputs(run(program, *passes))
    for result in (found, at_home):
        error = (outputs(result) - expected).norm() / expected.norm()
        assert error < 0.02


@pytest.mark.gpu
def test_the_integer_stage_has_the_same_bits_on_a_gpu(program: ts.Program, gpu: torch.device) -> None:
    assert_same_bits(run(program, *INTEGER), gpu)
    assert_operators_agree(gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ts.Precision)
def test_a_run_on_a_gpu_goes_on_to_the_same_bits(
    program: ts.Program, gpu: torch.device, precision: ts.Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    steps = ts.Training(epochs=3, precision=precision, checkpoint_every=1, average=0.9, progress=False)

    def trained(checkpoint: Path | None, stop_after: int = 99) -> dict[str, Tensor]:
        count = 0

        def stopping(found: Tensor, labels: Tensor) -> Tensor:
            nonlocal count
            count += 1
            assert count <= stop_after
            return loss(found, labels)

        options = dataclasses.replace(steps, checkpoint=checkpoint)
        return run(program.to(gpu), ts.Finetune(LABELLED, stopping, training=options)).tensors()

    torch.use_deterministic_algorithms(True)
    try:
        whole = trained(None)
        with pytest.raises(TersorError):
            trained(tmp_path, stop_after=3)
        resumed = trained(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.gpu
def test_a_full_gpu_is_said_with_what_helps(program: ts.Program, gpu: torch.device) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        large = (torch.zeros(4096, 1, 8, 8), torch.zeros(4096, dtype=torch.int64))
        with pytest.raises(TersorError, match="no memory left") as caught:
            run(program, ts.Finetune([large], loss, training=OPTIONS))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "smaller batches" in str(caught.value.hint)
