"""Quantized chains stay whole: nothing goes to float and back for an operator that moves integers or has a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from transformers import (
    BertConfig,
    BertModel,
    MobileNetV2Config,
    MobileNetV2Model,
    PreTrainedModel,
    SegformerConfig,
    SegformerModel,
    ViTConfig,
    ViTModel,
)

import tersor as ts
from tersor.ir.integer_operators import DEQUANTIZE, QUANTIZE
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.program import Program
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.quantization.placement import Coverage
from tersor.passes.quantization.roles import Role, role_of, roles

_MOVES = frozenset(roles(Role.MOVE))


class UNet(nn.Module):
    """Down, across, up, with what was before joined in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.a(x))
        deep = torch.relu(self.b(nn.functional.max_pool2d(wide, 2)))
        y: Tensor = self.c(torch.cat([wide, nn.functional.interpolate(deep, scale_factor=2.0)], 1))
        return y


def _transformer(kind: type[PreTrainedModel], config: type[Any], **sizes: Any) -> PreTrainedModel:
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return kind(config(**common, **sizes))


IMAGES = {"pixel_values": torch.randn(1, 3, 32, 32)}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "unet": (UNet, {"x": torch.randn(1, 3, 16, 16)}),
    "mobilenet": (lambda: MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.25, initializer_range=0.2)), IMAGES),
    "vit": (lambda: _transformer(ViTModel, ViTConfig, image_size=32, patch_size=8), IMAGES),
    "bert": (
        lambda: _transformer(BertModel, BertConfig, vocab_size=50, max_position_embeddings=16),
        {"input_ids": torch.arange(10).reshape(1, 10)},
    ),
    "segformer": (
        lambda: SegformerModel(SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4)),
        {"pixel_values": torch.randn(1, 3, 64, 64)},
    ),
}  # fmt: skip


@cache
def quantized(name: str, coverage: Coverage) -> Program:
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    program = ts.trace(make().eval(), (), inputs)
    step = ts.Quantize(calibration=[inputs], coverage=coverage)
    return ts.PassManager([step], verify=False).run(program).program


def needless(node: fx.Node, through: frozenset[object], start: object, end: object) -> Iterator[list[str]]:
    """Ways from a node out of integers to one back into them on which nothing but `through` stands."""
    for user in node.users:
        if user.target is end and user.args[0] is node and node.target is not start:
            yield [node.name, user.name]
        elif user.target in through:
            yield from ([node.name, *rest] for rest in needless(user, through, start, end))


@pytest.mark.parametrize("name", MODELS)
def test_no_island_of_moves_is_left_between_integers(name: str) -> None:
    """In the lowered program: dequantize, moves alone, quantize."""
    program = LowerToInteger()(quantized(name, Coverage.EVERYTHING))
    for node in program.graph.find_nodes(op="call_function", target=DEQUANTIZE):
        assert not list(needless(node, _MOVES, DEQUANTIZE, QUANTIZE))


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_in_float_between_integers_has_no_integer_form(name: str) -> None:
    """In the lowered program: what reads integers through dequantize, and is read by quantize, is of the role FLOAT."""
    program = LowerToInteger()(quantized(name, Coverage.EVERYTHING))
    for node in program.graph.nodes:
        between = ends_in(node, QUANTIZE) and starts_from(node, DEQUANTIZE)
        if node.op == "call_function" and between and node.target not in (DEQUANTIZE, QUANTIZE):
            assert role_of(program, node) is Role.FLOAT, node.format_node()


def ends_in(node: fx.Node, target: object) -> bool:
    return any(user.target is target or (user.target in _MOVES and ends_in(user, target)) for user in node.users)


def starts_from(node: fx.Node, target: object) -> bool:
    return any(n.target is target or (n.target in _MOVES and starts_from(n, target)) for n in node.all_input_nodes)


@pytest.mark.parametrize("name", MODELS)
def test_no_value_is_rounded_twice_on_its_way(name: str) -> None:
    """In the fake-quantized program for CPUs: from one grid through moves alone onto another."""
    program = quantized(name, Coverage.FASTEST)
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        if program.constant(node.args[0]) is None:
            moved = [user for user in node.users if user.target in _MOVES]
            assert not any(list(needless(user, _MOVES, None, FAKE_QUANTIZE)) for user in moved)
