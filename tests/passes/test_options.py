"""An option of the wrong type is refused when the passes are given, with what was probably meant."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn

import tersor as ts


def wrong(value: Any) -> Any:
    """What a caller gives whose types nobody checks."""
    return value


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            lambda: ts.Quantize(wrong("int8")),
            ["quantize: scheme", "expected: Scheme", "'int8', of type str", "ts.INT8"],
        ),
        (lambda: ts.Quantize(observer=wrong("mse")), ["quantize: observer", "Observer.MSE"]),
        (
            lambda: ts.Finetune(training=ts.Training(precision=wrong("fp16"))),
            ["finetune: training.precision", "expected: Precision", "Precision.FLOAT16"],
        ),
        (lambda: ts.PruneChannels(wrong(0.5)), ["prune_channels: target", "expected: Target", "0.5, of type float"]),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(step: Any, words: list[str]) -> None:
    with pytest.raises(ts.TersorError) as raised:
        ts.PassManager([step()])
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_number_of_another_library_is_a_number() -> None:
    ts.PassManager([ts.PruneChannels(ts.Macs(numpy.float32(0.5)), multiple=numpy.int64(8), least=0)])


def test_a_model_is_no_program() -> None:
    calls: list[Any] = [ts.PassManager([ts.Canonicalize()]).run, ts.lower]
    for call in calls:
        with pytest.raises(ts.TersorError, match=r"found:    Linear\n  try:      ts.trace\(model, example\)"):
            call(nn.Linear(2, 2))


def test_descriptions_say_what_they_take() -> None:
    each: list[tuple[Any, str]] = [
        (lambda: ts.QuantType(bits=16), "2 to 8"),
        (lambda: ts.QuantType(bits=wrong("8")), "found:    '8'"),
        (lambda: ts.Scheme(weight=ts.QuantType(8)), "symmetric=True"),
        (lambda: ts.NM(4, 2), "0 < n < m"),
        (lambda: ts.Block(0, 4, 0.5), "1 or more"),
        (lambda: ts.Unstructured(2.0), r"\(0, 1\]"),
        (lambda: ts.Macs(wrong("0.5")), r"found:    '0.5'"),
        (lambda: ts.trace(nn.Linear(2, 2), torch.ones(1, 2), dynamic=wrong({"input": [0]})), "'batch'"),
    ]
    for make, words in each:
        with pytest.raises(ts.TersorError, match=words):
            make()
    assert issubclass(type(_raised(lambda: ts.QuantType(16))), ValueError)


def _raised(make: Any) -> BaseException:
    with pytest.raises(ts.TersorError) as raised:
        make()
    return raised.value
