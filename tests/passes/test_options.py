"""An option of the wrong type is refused when the passes are given, with what was probably meant."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn

import tersor as ts


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda: ts.Quantize("int8"), ["quantize: scheme", "expected: Scheme", "'int8', of type str", "ts.INT8"]),
        (lambda: ts.Quantize(observer="mse"), ["quantize: observer", "Observer.MSE"]),
        (lambda: ts.PruneChannels(0.5), ["prune_channels: target", "expected: Target", "0.5, of type float"]),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(step: Any, words: list[str]) -> None:
    with pytest.raises(ts.TersorError) as raised:
        ts.PassManager([step()])
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_number_of_another_library_is_a_number() -> None:
    ts.PassManager([ts.PruneChannels(ts.Macs(numpy.float32(0.5)), multiple=numpy.int64(8), least=0)])


def test_a_model_is_no_program() -> None:
    for wrong in (lambda model: ts.PassManager([ts.Canonicalize()]).run(model), ts.lower):
        with pytest.raises(ts.TersorError, match=r"found:    Linear\n  try:      ts.trace\(model, example\)"):
            wrong(nn.Linear(2, 2))


def test_descriptions_say_what_they_take() -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: ts.QuantType(bits=16), "2 to 8"),
        (lambda: ts.QuantType(bits="8"), "found:    '8'"),  # type: ignore[arg-type]  # on purpose
        (lambda: ts.Scheme(weight=ts.QuantType(8)), "symmetric=True"),
        (lambda: ts.NM(4, 2), "0 < n < m"),
        (lambda: ts.Block(0, 4, 0.5), "1 or more"),
        (lambda: ts.Unstructured(2.0), r"\(0, 1\]"),
        (lambda: ts.Macs("0.5"), r"found:    '0.5'"),  # type: ignore[arg-type]  # on purpose
        (lambda: ts.trace(nn.Linear(2, 2), torch.ones(1, 2), dynamic={"input": [0]}), "'batch'"),  # type: ignore[dict-item]
    ]
    for make, words in wrong:
        with pytest.raises(ts.TersorError, match=words):
            make()
    assert issubclass(type(_raised(lambda: ts.QuantType(16))), ValueError)


def _raised(make: Any) -> BaseException:
    with pytest.raises(ts.TersorError) as raised:
        make()
    return raised.value
