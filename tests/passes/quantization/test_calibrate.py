"""Calibration and bias correction: numbers against independent computations, and bad data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program
from tersor.ir.quantization import INT4, INT8, INT8_PER_TENSOR, INT8_SYMMETRIC, W4A8, Observer, Scheme
from tersor.passes.compare import difference
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.correct_bias import CorrectBias
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.quantize import Quantize


class Chain(nn.Module):
    """Convolution, relu6, convolution, global mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """float32[batch, 3, 8, 8] to float32[batch, 5]."""
        y: Tensor = self.linear(self.b(torch.nn.functional.hardtanh(self.a(x), 0.0, 6.0)).mean((2, 3)))
        return y


def chain() -> tuple[Program, list[Tensor]]:
    """A traced chain with a dynamic batch, and data for it."""
    torch.manual_seed(0)
    batches = [torch.randn(size, 3, 8, 8) * 3 for size in (2, 4, 1)]
    return trace(Chain(), (batches[0],), dynamic={"x": {0: "batch"}}), batches


def error(program: Program, quantized: Program, batches: list[Tensor]) -> float:
    """SQNR in dB over some batches."""
    with torch.no_grad():
        return difference([program(b) for b in batches], [quantized(b) for b in batches]).sqnr


def test_every_observer_becomes_a_fake_quantize_with_the_range_of_the_data() -> None:
    program, batches = chain()
    quantized = Calibrate(batches, Observer.MIN_MAX)(InsertFakeQuant()(program))
    assert "observe" not in str(quantized)
    nodes = quantized.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    first = next(node for node in nodes if node.args[0].name == "x")
    everything = torch.cat([b.flatten() for b in batches])
    scale = quantized.tensor(str(first.args[1].target))
    assert scale.item() == pytest.approx((everything.max() - everything.min()).item() / 255, rel=1e-6)


def test_a_clamp_with_few_steps_above_zero_takes_no_search() -> None:
    """Of -1 to 0.0275 on 8 bits 7 steps are above zero; the scale that fits is 2.5 % off: 200,000 floats away."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.clamp(self.a(x), -1.0, 0.0275))
            return y

    x = torch.randn(2, 3, 8, 8) * 4
    program = Calibrate([x], Observer.MIN_MAX)(InsertFakeQuant()(trace(Net(), (x,))))
    scale = program.tensor("quantization.clamp.scale").item()
    zero_point = int(program.tensor("quantization.clamp.zero_point"))
    assert 0 < 127 - zero_point < 10
    assert 0.0275 * (1 - 1e-6) < (127 - zero_point) * scale <= 0.0275


def test_a_relu6_stays_within_its_clamp_so_that_it_can_be_dropped() -> None:
    program, batches = chain()
    for observer in Observer:
        quantized = Calibrate([b * 10 for b in batches], observer)(InsertFakeQuant()(program))
        nodes = quantized.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
        node = next(n for n in nodes if n.args[0].name == "hardtanh")
        scale, zero = (quantized.tensor(str(argument.target)).item() for argument in node.args[1:3])
        assert zero == -128
        assert 0 < (127 + 128) * scale <= 6


def test_a_bias_is_on_the_grid_of_its_accumulator() -> None:
    program, batches = chain()
    quantized = Calibrate(batches)(InsertFakeQuant()(program))
    nodes = quantized.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BIAS)
    assert len(nodes) == 2
    for node in nodes:
        bias, sx, sw = (quantized.tensor(str(argument.target)).double() for argument in node.args)
        with torch.no_grad():
            found = node.target(*(quantized.tensor(str(a.target)) for a in node.args)).double()
        steps = found / (sx * sw)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert ((found - bias).abs() <= 0.51 * sx * sw).all()


def test_a_bias_too_large_for_its_accumulator_raises_the_weight_scale() -> None:
    model = Chain()
    with torch.no_grad():
        model.a.weight[0] = 1e-12
        model.a.bias[0] = 50.0  # type: ignore[index]  # a convolution made with a bias
        model.a.weight[1] = 0.0
    batches = [torch.randn(2, 3, 8, 8)]
    quantized = Calibrate(batches)(InsertFakeQuant()(trace(model, (batches[0],))))
    with torch.no_grad():
        assert error(trace(model, (batches[0],)), quantized, batches) > 20


@pytest.mark.parametrize("scheme", [INT8, INT8_SYMMETRIC, INT8_PER_TENSOR, W4A8, INT4])
@pytest.mark.parametrize("observer", list(Observer))
def test_every_scheme_and_observer_gives_a_program_close_to_the_float_one(scheme: Scheme, observer: Observer) -> None:
    program, batches = chain()
    quantized = Calibrate(batches, observer, observer)(InsertFakeQuant(scheme)(program))
    wanted = {8: 25.0, 4: 5.0}[min(scheme.activation.bits, scheme.weight.bits)]
    assert error(program, quantized, batches) > wanted


def test_per_channel_beats_per_tensor_where_channels_differ() -> None:
    """A row of weights a hundred times smaller than its neighbours keeps its precision only with a scale of its own."""
    model = Chain()
    with torch.no_grad():
        model.linear.weight[0] *= 0.01
    batches = [torch.randn(4, 3, 8, 8)]
    program = trace(model, (batches[0],))
    found = {}
    for scheme in (INT8, INT8_PER_TENSOR):
        quantized = Calibrate(batches)(InsertFakeQuant(scheme)(program))
        weight = next(n for n in quantized.graph.nodes if n.name == "linear_weight_quantized")
        exact, *grid = (quantized.tensor(str(a.target)) for a in weight.args[:3])
        rounded = weight.target(exact, *grid, *weight.args[3:])
        found[scheme] = difference([exact[0]], [rounded[0]]).sqnr
    assert found[INT8] > found[INT8_PER_TENSOR] + 20


def test_data_may_be_a_generator_and_is_read_once() -> None:
    program, batches = chain()
    read: list[int] = []

    def stream() -> Iterator[tuple[Tensor]]:
        for index, batch in enumerate(batches):
            read.append(index)
            yield (batch,)

    streamed = Calibrate(stream())(InsertFakeQuant()(program))
    assert read == [0, 1, 2]
    listed = Calibrate([{"x": batch} for batch in batches])(InsertFakeQuant()(program))
    assert str(streamed) == str(listed)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        (None, "missing"),
        ([torch.randn(2, 4, 8, 8)], "batch 0 does not fit"),
        ([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).double()], "batch 1 does not fit"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "NaN"),
        ([torch.full((2, 3, 8, 8), float("inf"))], "infinity"),
        (["text"], "batch 0"),
    ],
)
def test_bad_data_is_refused_with_a_reason(batches: Any, message: str) -> None:
    program, _ = chain()
    with pytest.raises(CalibrationError, match=message):
        Calibrate(batches)(InsertFakeQuant()(program))


def test_not_finite_weights_are_refused_by_name() -> None:
    program, batches = chain()
    program.set_tensor("b.weight", program.tensor("b.weight").detach() * float("nan"))
    with pytest.raises(CalibrationError, match="b_weight"):
        Calibrate(batches[:1])(InsertFakeQuant()(program))


def test_there_has_to_be_something_to_calibrate() -> None:
    program, batches = chain()
    done = Calibrate(batches)(InsertFakeQuant()(program))
    with pytest.raises(PassError, match="nothing to calibrate"):
        Calibrate(batches)(done)


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """The statistics of a value have the same size after one batch and after many."""
    from tersor.passes.quantization.observers import Statistics

    statistics = Statistics(Observer.MSE)
    statistics.add(torch.randn(10))
    size = statistics.counts.numel()
    for _ in range(50):
        statistics.add(torch.randn(1000) * 100)
    assert statistics.counts.numel() == size


def test_corrected_biases_give_each_channel_the_float_mean() -> None:
    """The last operator's output is the program's, so the mean error is what rounding one bias leaves: half a step.

    A quarter more allows for values that fall on the other side of a tie when the biases before it moved.
    """
    program, batches = chain()
    plain = Calibrate(batches, weight_observer=Observer.MIN_MAX)(InsertFakeQuant(W4A8)(program))
    corrected = CorrectBias(batches)(plain)
    with torch.no_grad():
        exact = torch.cat([program(b) for b in batches])
        before = (torch.cat([plain(b) for b in batches]) - exact).mean(0).abs()
        after = (torch.cat([corrected(b) for b in batches]) - exact).mean(0).abs()
    biases = corrected.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BIAS)
    node = next(n for n in biases if any(user.name == "linear" for user in n.users))
    step = corrected.tensor(str(node.args[1].target)) * corrected.tensor(str(node.args[2].target))
    assert (after <= 0.75 * step).all()
    assert before.max() > 5 * after.max()


def test_an_operator_without_a_bias_gets_one_on_its_grid() -> None:
    program, batches = chain()
    corrected = CorrectBias(batches)(Calibrate(batches)(InsertFakeQuant(W4A8)(program)))
    assert "conv2d_1_bias" in str(corrected)
    assert len(corrected.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BIAS)) == 3


def test_bias_correction_leaves_the_given_program_alone_and_needs_data() -> None:
    program, batches = chain()
    plain = Calibrate(batches)(InsertFakeQuant()(program))
    before = {name: tensor.clone() for name, tensor in plain.tensors().items()}
    CorrectBias(batches)(plain)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.tensors().items())
    no_data: tuple[Any, ...] = (None, [])
    for bad in no_data:
        with pytest.raises(CalibrationError):
            CorrectBias(bad)(plain)


def test_quantize_reads_a_generator_once_and_corrects_with_what_it_kept() -> None:
    program, batches = chain()
    from_generator = Quantize(calibration=(batch for batch in batches))(program)
    from_list = Quantize(calibration=batches)(program)
    assert str(from_generator) == str(from_list)
    assert "corrected" in str(from_list)
    uncorrected = Quantize(calibration=batches, correct_bias=False)(program)
    assert error(program, from_list, batches) > error(program, uncorrected, batches)


def test_weights_of_linears_with_few_bits_have_the_scale_of_least_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(16, 8)).eval()
    x = torch.randn(2, 4, 16)
    for scheme, shrunk in ((W4A8, {"1.weight"}), (INT8, set())):
        program = Calibrate([x])(InsertFakeQuant(scheme)(trace(model, x)))
        for name in ("0.weight", "1.weight"):
            scale = program.tensor(f"quantization.{name.replace('.', '_')}.scale")
            full = program.tensor(name).detach().abs().flatten(1).amax(1) / scheme.weight.qmax
            assert bool((scale < full * 0.999).any()) == (name in shrunk)


class Words(nn.Module):
    """Rows of a table, and a linear layer."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding.from_pretrained(table), nn.Linear(table.shape[1], 4)

    def forward(self, tokens: Tensor) -> Any:
        """int64[batch, length] to float32[batch, length, 4]."""
        return self.linear(self.words(tokens))


def grid_of_words(table: Tensor, tokens: Tensor, observer: Observer) -> tuple[float, float]:
    """The scale of an embedding, and the mean squared error that its grid makes of the whole table."""
    observed = InsertFakeQuant(coverage=Coverage.EVERYTHING)(trace(Words(table), (tokens,)))
    quantized = Calibrate([(tokens,)], observer)(observed)
    nodes = quantized.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    node = next(node for node in nodes if "embedding" in node.name)
    scale, zero_point = (quantized.constant(argument) for argument in node.args[1:3])
    assert scale is not None
    assert zero_point is not None
    return scale.item(), error_of(table, scale.item(), zero_point.item())


def error_of(table: Tensor, scale: float, zero_point: float) -> float:
    rounded = torch.clamp((table / scale).round() + zero_point, -128, 127) - zero_point
    return float((rounded * scale - table).square().mean())


@pytest.mark.parametrize("observer", list(Observer))
def test_the_grid_of_an_embedding_holds_rows_that_no_token_chose(observer: Observer) -> None:
    torch.manual_seed(0)
    table = torch.randn(300, 16) * torch.linspace(0.1, 2, 300)[:, None]
    scale, found = grid_of_words(table, torch.arange(6).reshape(1, 6), observer)
    assert 0.5 * (table.max() - table.min()) / 255 < scale <= (table.max() - table.min()) / 255 * 1.001
    assert 10 * torch.log10(table.square().mean() / found) > 30


def test_a_few_wild_rows_do_not_spoil_the_grid_of_an_embedding() -> None:
    """The range is that of least error over the table: a scan of a hundred ranges finds none much better."""
    torch.manual_seed(0)
    table = torch.randn(3000, 16)
    table[7, 0] = 8.0
    _, found = grid_of_words(table, torch.tensor([[7, 1, 2]]), Observer.MSE)
    ranges = [(share * table.min(), share * table.max()) for share in torch.linspace(0.3, 1, 100)]
    scans = [((high - low) / 255, -128 - (low / ((high - low) / 255)).round()) for low, high in ranges]
    assert found <= 1.02 * min(error_of(table, scale.item(), zero.item()) for scale, zero in scans)
    whole = (table.max() - table.min()) / 255
    assert found < error_of(table, whole.item(), (-128 - (table.min() / whole).round()).item())
