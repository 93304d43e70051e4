"""What calibration takes, in which forms, and how it refuses data: with the place of the fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

import tersor as ts
from tersor.ir.errors import CalibrationError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.passes.quantization.calibration_data import Replay
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.samples import Gram, Rows


class Masked(nn.Module):
    """Attention by hand over a float input, with a mask that is added."""

    def __init__(self, hidden: float = -1e38) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.hidden = hidden

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """float32[batch, length, 8] and int64[batch, length], 1 to see and 0 to hide."""
        mask = torch.where(keep.unsqueeze(1) > 0, 0.0, self.hidden)
        scores = self.query(x) @ self.key(x).transpose(1, 2) + mask
        y: Tensor = self.out(torch.softmax(scores, -1) @ self.value(x))
        return y


def masked(hidden: float = -1e38) -> tuple[ts.Program, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    batches = []
    for _ in range(4):
        keep = torch.ones(2, 6, dtype=torch.int64)
        keep[:, 4:] = 0
        batches.append((torch.randn(2, 6, 8), keep))
    return ts.trace(Masked(hidden).eval(), batches[0], dynamic={"x": {0: "batch"}, "keep": {0: "batch"}}), batches


FORMS: dict[str, Callable[[list[tuple[Tensor, Tensor]]], Iterable[Any]]] = {
    "tuples": list,
    "generator": iter,
    "lists": lambda batches: [list(batch) for batch in batches],
    "dicts": lambda batches: [{"x": x, "keep": keep} for x, keep in batches],
    "BatchEncoding": lambda batches: [BatchEncoding({"x": x, "keep": keep}) for x, keep in batches],
    "DataLoader": lambda batches: DataLoader(
        TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True))), batch_size=2
    ),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_data_gives_the_same_program(form: str) -> None:
    program, batches = masked()
    expected = ts.PassManager([ts.Quantize(calibration=batches)]).run(program).program
    found = ts.PassManager([ts.Quantize(calibration=FORMS[form](batches))]).run(program).program
    assert str(found) == str(expected)


@pytest.mark.parametrize("hidden", [-math.inf, -1e38, -1e9, -1e4])
@pytest.mark.parametrize("coverage", list(Coverage))
def test_masks_are_in_no_range_that_a_softmax_reads(hidden: float, coverage: Coverage) -> None:
    program, batches = masked(hidden)
    quantized = ts.PassManager([ts.Quantize(calibration=batches, coverage=coverage)]).run(program).program
    for node in quantized.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        if any(user.target is torch.ops.aten.softmax.int for user in node.users):
            assert float(quantized.tensor(str(node.args[1].target))) < 1
    with torch.no_grad():
        exact, found = program(*batches[0]), quantized(*batches[0])
    assert float((exact - found).abs().max()) < 0.1 * float(exact.abs().max())


def test_empty_data_and_data_that_does_not_fit_are_refused() -> None:
    program, batches = masked()
    for step in (ts.Quantize, ts.QuantizeWeights):
        with pytest.raises(CalibrationError, match="empty"):
            ts.PassManager([step(calibration=[])]).run(program)
        with pytest.raises(CalibrationError, match="batch 1 does not fit"):
            ts.PassManager([step(calibration=[batches[0], (torch.randn(2, 5, 9), batches[0][1])])]).run(program)
    with pytest.raises(CalibrationError, match="calibration data is missing"):
        ts.PassManager([ts.Quantize()]).run(program)


class Logarithm(nn.Module):
    """Gives NaN for negative inputs, at one node in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.log(self.first(x)) + 1)
        return y


def test_nan_is_reported_with_the_node_where_it_first_appears() -> None:
    torch.manual_seed(0)
    model = Logarithm()
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(4))
        model.first.bias.zero_()
    good = torch.rand(2, 4) + 0.5
    program = ts.trace(model.eval(), (good,))
    steps: list[ts.Pass] = [
        ts.Quantize(calibration=[good, -good]),
        ts.Quantize(calibration=[good, -good], smooth=False),
    ]
    for step in steps:
        with pytest.raises(CalibrationError, match=r"a value is not finite") as error:
            ts.PassManager([step]).run(program)
        assert error.value.node == "log"
    with pytest.raises(CalibrationError, match="an input is not finite") as error:
        ts.PassManager([ts.Quantize(calibration=[good * math.nan])]).run(program)
    assert error.value.node == "x"


def test_nan_in_weights_is_reported_with_the_weight() -> None:
    model = Logarithm()
    with torch.no_grad():
        model.second.weight[1, 2] = math.inf
    good = torch.rand(2, 4) + 0.5
    program = ts.trace(model.eval(), (good,))
    for step in (ts.QuantizeWeights(), ts.QuantizeDynamic()):
        with pytest.raises(CalibrationError, match="a weight is not finite") as error:
            ts.PassManager([step], verify=False).run(program)
        assert "second_weight" in str(error.value.node)


def test_a_generator_is_read_once_and_its_first_batches_are_kept() -> None:
    made = iter(range(100))
    data = Replay(made, keep=4)
    assert data.first(3) == [0, 1, 2]
    assert list(data) == list(range(100))
    assert list(data) == [0, 1, 2, 3]
    assert data.first(10) == [0, 1, 2, 3]


def test_a_list_is_read_whole_each_time() -> None:
    data = Replay([1, 2, 3], keep=1)
    assert data.first(2) == [1, 2]
    assert list(data) == list(data) == [1, 2, 3]


def test_a_sample_of_rows_is_bounded_even_and_keeps_the_largest() -> None:
    rows = Rows(limit=64)
    for start in range(0, 5000, 100):
        batch = torch.arange(start, start + 100, dtype=torch.float32).unsqueeze(1).repeat(1, 3)
        if start == 2500:
            batch[17] = 1e6
        rows.add(batch)
    sample = rows.sample()
    assert sample.shape[0] <= 64 + 16
    assert float(sample.max()) == 1e6
    even = sample[: rows._count, 0]
    assert len({float(step) for step in even.diff()[:-1]}) == 1
    assert rows.largest is not None
    assert rows.largest.tolist() == [1e6] * 3


def test_the_gram_matrix_is_the_mean_over_all_rows() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(size, 5) for size in (3, 7, 1)]
    gram = Gram()
    for part in parts:
        gram.add(part)
    everything = torch.cat(parts).double()
    assert gram.mean is not None
    assert torch.allclose(gram.mean, everything.T @ everything / 11, atol=1e-6)


class Image(nn.Module):
    """One input, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """A convolution."""
        y: Tensor = self.layer(image)
        return y


IMAGES = torch.randn(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (IMAGES, "found:    Tensor\n  try:      give several batches, or \\[batch\\] for one"),
        ({"image": IMAGES}, "found:    dict"),
        (lambda: [IMAGES], r"call it: calibration=batches\(\)"),
        (7, "not a collection of batches"),
        ([], "a generator gives its batches once"),
        ([IMAGES, IMAGES[:2]], r"trace with dynamic=\{'image': \{0: 'batch'\}\}, or give batches of 4"),
        ([IMAGES[0]], r"image.unsqueeze\(0\)"),
        ([(IMAGES, torch.zeros(4))], "without labels"),
        ([{"pixels": IMAGES}], "leave out pixels and give image"),
        ([{"image": IMAGES, "label": 3}], "leave out label"),
        ([IMAGES.double()], r"cast it: image.to\(torch.float32\)"),
        ([IMAGES.numpy()], "give tensors in place of ndarray"),
        ([IMAGES, IMAGES / 0], "calibration batch 1: an input is not finite"),
        ([IMAGES * 1e35], "counts as an attention mask\n  node:     %image"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_with_what_to_do(batches: Any, message: str) -> None:
    program = ts.trace(Image(), IMAGES)
    with pytest.raises(CalibrationError, match=message):
        ts.PassManager([ts.Quantize(calibration=batches)]).run(program)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "2.bias"])
@pytest.mark.parametrize("step", [ts.Quantize(calibration=[torch.ones(2, 3)]), ts.QuantizeWeights(block=16)])
def test_a_weight_that_is_not_finite_is_named_before_anything_runs(step: ts.Pass, name: str, value: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    program = ts.trace(model, torch.ones(2, 3))
    tensor = program.tensor(name).detach().clone()
    tensor[0] = value
    program.set_tensor(name, tensor)
    with pytest.raises(CalibrationError, match="a weight is not finite") as error:
        ts.PassManager([step], verify=False).run(program)
    if not isinstance(step, ts.QuantizeWeights):
        assert name in str(error.value)
