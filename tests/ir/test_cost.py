"""Costs against figures from the literature, against torch's own counter, and against running with real memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from tersor.frontends.torch_export import trace
from tersor.ir.cost import Cost, cost
from tersor.ir.errors import SignatureError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.program import Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.stage import Stage
from tersor.ir.structure import Structure, flatten

aten = torch.ops.aten


class Function(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Call(nn.Module):
    """One layer as a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def counted(program: Program) -> int:
    """The multiply-accumulates that torch's counter sees when the program runs."""
    assert program.example is not None
    with FlopCounterMode(display=False) as counter:
        program.run(program.example)
    return int(counter.get_total_flops()) // 2


# -- the literature --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet50() -> Program:
    with torch.device("meta"):
        config = transformers.ResNetConfig.from_dict({"num_labels": 1000})
        model: nn.Module = transformers.ResNetForImageClassification(config)
    return trace(model.to_empty(device="cpu"), (torch.zeros(1, 3, 224, 224),))


def test_resnet_50_has_4_09_billion_macs_and_25_6_million_parameters(resnet50: Program) -> None:
    """He et al. 2016 (arXiv:1512.03385) with the stride in the 3x3 convolution: 4.09 GMACs, 25,557,032 parameters."""
    found = cost(resnet50)
    assert found.parameters == 25_557_032
    assert round(found.macs / 1e9, 2) == 4.09
    statistics = sum(2 * m.numel() for name, m in resnet50.tensors().items() if name.endswith("running_mean"))
    assert found.parameter_bytes == 4 * (25_557_032 + statistics)


def test_resnet_50s_largest_moment(resnet50: Program) -> None:
    """The input stays; the stem's convolution and its batch norm each hold 64 x 112 x 112 floats at once."""
    image, stem = 4 * 3 * 224 * 224, 4 * 64 * 112 * 112
    assert cost(resnet50).peak_activation_bytes == image + max(2 * stem, 3 * 4 * 256 * 56 * 56)


# -- multiply-accumulates --------------------------------------------------------------------------------------------


def call_of(target: torch._ops.OpOverload, *arguments: Any, **options: Any) -> Program:
    """A program that is one call; its tensor arguments are the inputs."""
    graph = fx.Graph()
    inputs: list[Tensor] = []

    def place(argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        inputs.append(argument)
        return graph.placeholder(f"x{len(inputs)}")

    call = graph.call_function(target, fx.node.map_aggregate(arguments, place), options)
    graph.output((call,))
    args, kwargs = flatten((tuple(inputs), {}))[1].children
    specs = tuple(TensorSpec(f"x{i}", x.dtype, tuple(x.shape)) for i, x in enumerate(inputs))
    return Program.build(graph, {}, Signature(specs, args, kwargs, Structure("leaf")), example=inputs)


def t(*shape: int) -> Tensor:
    return torch.randn(shape)


COUNTED: dict[str, tuple[torch._ops.OpOverload, tuple[Any, ...]]] = {
    "conv1d": (aten.conv1d.default, (t(2, 4, 9), t(6, 4, 3), t(6), [1], [1])),
    "conv2d": (aten.conv2d.default, (t(2, 4, 9, 8), t(6, 4, 3, 2), None, [2, 2], [0, 0], [1, 2])),
    "conv2d same": (aten.conv2d.padding, (t(2, 4, 9, 8), t(6, 4, 3, 3), None, [1, 1], "same")),
    "conv3d": (aten.conv3d.default, (t(2, 2, 4, 5, 3), t(4, 2, 2, 2, 2))),
    "grouped": (aten.conv2d.default, (t(2, 4, 6, 6), t(8, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 2)),
    "depthwise": (aten.conv2d.default, (t(2, 4, 6, 6), t(4, 1, 3, 3), None, [1, 1], [0, 0], [1, 1], 4)),
    "transposed 1d": (aten.conv_transpose1d.default, (t(2, 4, 6), t(4, 6, 3))),
    "transposed 2d": (
        aten.conv_transpose2d.input,
        (t(2, 4, 6, 6), t(4, 3, 3, 3), None, [2, 2], [0, 0], [0, 0], 2),
    ),
    "transposed 3d": (aten.conv_transpose3d.input, (t(1, 2, 3, 3, 3), t(2, 3, 2, 2, 2))),
    "convolution": (
        aten.convolution.default,
        (t(2, 4, 6), t(6, 4, 3), None, [1], [0], [1], False, [0], 1),
    ),
    "convolution, transposed": (
        aten.convolution.default,
        (t(2, 4, 6), t(4, 6, 3), None, [1], [0], [1], True, [0], 1),
    ),
    "linear": (aten.linear.default, (t(2, 3, 5), t(7, 5), t(7))),
    "mm": (aten.mm.default, (t(3, 4), t(4, 5))),
    "bmm": (aten.bmm.default, (t(2, 3, 4), t(2, 4, 5))),
    "matmul": (aten.matmul.default, (t(2, 1, 3, 4), t(6, 4, 5))),
    "addmm": (aten.addmm.default, (t(5), t(3, 4), t(4, 5))),
    "baddbmm": (aten.baddbmm.default, (t(2, 3, 5), t(2, 3, 4), t(2, 4, 5))),
    "attention": (aten.scaled_dot_product_attention.default, (t(2, 3, 5, 4), t(2, 3, 7, 4), t(2, 3, 7, 6))),
    "einsum": (aten.einsum.default, ("bij,bkj->bik", [t(2, 3, 4), t(2, 5, 4)])),
    "einsum, implicit": (aten.einsum.default, ("ij,jk", [t(3, 4), t(4, 5)])),
    "einsum of three": (aten.einsum.default, ("ij,jk,kl->il", [t(2, 3), t(3, 4), t(4, 5)])),
    "einsum with dots": (aten.einsum.default, ("...ij,jk->...ik", [t(2, 6, 3, 4), t(4, 5)])),
}


@pytest.mark.parametrize("name", COUNTED)
def test_operators_against_torchs_counter(name: str) -> None:
    target, arguments = COUNTED[name]
    program = call_of(target, *arguments)
    assert cost(program).macs == counted(program) > 0


BY_HAND: dict[str, tuple[torch._ops.OpOverload, tuple[Any, ...], int]] = {
    "matmul by a vector": (aten.matmul.default, (t(2, 3, 4), t(4)), 24),
    "vector by a matrix": (aten.matmul.default, (t(4), t(4, 5)), 20),
    "linear on a vector": (aten.linear.default, (t(5), t(7, 5)), 35),
    "mv": (aten.mv.default, (t(3, 4), t(4)), 12),
    "dot": (aten.dot.default, (t(4), t(4)), 4),
    "inner": (aten.inner.default, (t(2, 4), t(3, 4)), 24),
    "outer": (aten.outer.default, (t(4), t(3)), 12),
    "addmv": (aten.addmv.default, (t(3), t(3, 4), t(4)), 12),
    "addbmm": (aten.addbmm.default, (t(3, 5), t(2, 3, 4), t(2, 4, 5)), 120),
    "einsum of one": (aten.einsum.default, ("ij->ji", [t(3, 4)]), 0),
    "implicit einsum of three": (aten.einsum.default, ("ij,jk,kl", [t(2, 3), t(3, 4), t(4, 5)]), 24 + 40),
    "add": (aten.add.Tensor, (t(3, 4), t(3, 4)), 0),
}


HIDDEN, STEPS, BATCH, IN = 6, 5, 2, 3
RECURRENT: dict[str, tuple[nn.Module, int]] = {
    "rnn": (nn.RNN(IN, HIDDEN), HIDDEN * (IN + HIDDEN)),
    "relu rnn": (nn.RNN(IN, HIDDEN, nonlinearity="relu", bias=False), HIDDEN * (IN + HIDDEN)),
    "gru": (nn.GRU(IN, HIDDEN), 3 * HIDDEN * (IN + HIDDEN)),
    "lstm": (nn.LSTM(IN, HIDDEN), 4 * HIDDEN * (IN + HIDDEN)),
    "two layers": (nn.LSTM(IN, HIDDEN, 2), 4 * HIDDEN * (IN + HIDDEN) + 4 * HIDDEN * 2 * HIDDEN),
    "both ways": (
        nn.GRU(IN, HIDDEN, 2, bidirectional=True),
        2 * 3 * HIDDEN * (IN + HIDDEN) + 2 * 3 * HIDDEN * (2 * HIDDEN + HIDDEN),
    ),
    "projected": (nn.LSTM(IN, HIDDEN, proj_size=4), 4 * HIDDEN * (IN + 4) + 4 * HIDDEN),
}
"""What one step of one sequence takes: gates of HIDDEN values, each a sum over the input and over the state."""


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    layer, each = RECURRENT[name]
    program = trace(layer, (t(STEPS, BATCH, IN),))
    assert cost(program).macs == STEPS * BATCH * each


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_recurrent_cells(cell: type[nn.Module], gates: int) -> None:
    program = trace(cell(IN, HIDDEN), (t(BATCH, IN),))
    assert cost(program).macs == BATCH * gates * HIDDEN * (IN + HIDDEN)


@pytest.mark.parametrize("name", BY_HAND)
def test_operators_by_hand(name: str) -> None:
    target, arguments, macs = BY_HAND[name]
    assert cost(call_of(target, *arguments)).macs == macs


def test_grouped_query_attention_counts_every_query_head() -> None:
    shapes = t(1, 6, 5, 4), t(1, 2, 7, 4), t(1, 2, 7, 3)
    program = call_of(aten.scaled_dot_product_attention.default, *shapes, enable_gqa=True)
    assert cost(program).macs == 6 * 5 * 7 * (4 + 3)


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A small convolutional net of random widths, kernels, groups and strides."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    layers: list[nn.Module] = []
    width = channels = pick(2, 4, 6)
    for _ in range(pick(2, 3, 4)):
        groups, out = pick(1, 2), pick(2, 4, 8)
        layers += [nn.Conv2d(width, out, pick(1, 3), stride=pick(1, 2), padding=1, groups=groups), nn.ReLU()]
        width = out
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, pick(3, 5))]
    return nn.Sequential(*layers).eval(), torch.randn(pick(1, 3), channels, 12, 10)


@pytest.mark.parametrize("seed", range(6))
def test_random_nets_against_torchs_counter_and_real_memory(seed: int) -> None:
    model, x = random_net(seed)
    program = trace(Call(model), (x,))
    found = cost(program)
    assert found.macs == counted(program)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.peak_activation_bytes == measured_peak(program)


# -- memory ----------------------------------------------------------------------------------------------------------


class Meter(fx.Interpreter):
    """Runs a program, and after each operator adds up the memory of the values that are still needed."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module, garbage_collect_values=True)
        self.constants = {t.untyped_storage().data_ptr() for t in program.tensors().values()}
        self.peak = 0

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":  # the interpreter lets go of results as it returns them
            return super().run_node(n)
        result = super().run_node(n)
        storages = {}
        for value in [*self.env.values(), result, *self.inputs]:
            for tensor in value if isinstance(value, list | tuple) else [value]:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(size for place, size in storages.items() if place not in self.constants))
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs = args
        return super().run(*args, **kwargs)


def measured_peak(program: Program) -> int:
    assert program.example is not None
    meter = Meter(program)
    gc.collect()
    meter.run(*program.example)
    return meter.peak


def residual(x: Tensor) -> Tensor:
    left = x.exp().sin()
    return left.cos().tanh() + left


def shared_views(x: Tensor) -> Tensor:
    parts = x.exp().split([1, 3], dim=1)
    return torch.cat([parts[1].reshape(-1), parts[0].sin().reshape(-1)])


def widening(x: Tensor) -> tuple[Tensor, Tensor]:
    doubled = x.to(torch.float64) * 2
    return doubled.sum(), doubled.exp().to(torch.float32)


@pytest.mark.parametrize("function", [residual, shared_views, widening])
def test_the_peak_is_that_of_a_run_that_frees_what_it_can(function: Callable[..., Any]) -> None:
    program = trace(Function(function), (torch.randn(8, 4),))
    assert cost(program).peak_activation_bytes == measured_peak(program)


def test_views_take_no_memory() -> None:
    program = trace(Function(lambda x: x.transpose(0, 1).unsqueeze(0)[:, 1:]), (torch.randn(8, 4),))
    assert cost(program).peak_activation_bytes == 4 * 32
    assert all(
        n.activation_bytes == 0 for name, n in cost(program).nodes.items() if name != program.placeholders[0].name
    )


# -- parameters ------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.embedding(tokens))
        return result


def test_a_tied_tensor_is_counted_once_where_it_is_first_used() -> None:
    program = trace(Tied(), (torch.zeros(2, 3, dtype=torch.int64),))
    found = cost(program)
    assert (found.parameters, found.parameter_bytes) == (50, 200)
    by_use = [node.parameters for node in found.nodes.values() if node.parameters]
    assert by_use == [40, 10]


def test_a_layers_parameters_are_its_own() -> None:
    program = trace(Call(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))), (torch.randn(1, 3),))
    linear = [cost(program).nodes[n.name] for n in program.graph.nodes if n.op == "call_function"]
    assert [(node.parameters, node.macs) for node in linear] == [(16, 12), (8, 8)]


def quantized_linear(low: int, high: int) -> Program:
    """A linear layer [5, 3] with its input, weight and bias behind fake-quantizes."""
    program = trace(Call(nn.Linear(3, 5)), (torch.randn(2, 3),))
    (linear,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    program.add_tensor("x_scale", torch.tensor(0.1))
    program.add_tensor("x_zero_point", torch.tensor(0, dtype=torch.int32))
    program.add_tensor("w_scale", nn.Parameter(torch.full((5,), 0.1)))
    program.add_tensor("w_zero_point", torch.zeros(5, dtype=torch.int32))
    with program.graph.inserting_before(linear):
        grids = [program.attribute(f"{name}_{part}") for name in "xw" for part in ("scale", "zero_point")]
        x = program.call(FAKE_QUANTIZE, [linear.args[0], *grids[:2], None, -128, 127], like=linear)
        weight = program.call(FAKE_QUANTIZE, [linear.args[1], *grids[2:], 0, low, high], like=linear)
        bias = program.call(FAKE_QUANTIZE_BIAS, [linear.args[2], grids[0], grids[2]], like=linear)
        linear.args = (x, weight, bias)
    program.stage = Stage.FAKE_QUANT
    return program.verify()


@pytest.mark.parametrize(("low", "high", "weight_bytes"), [(-127, 127, 15), (-128, 127, 15), (-7, 7, 8), (-8, 7, 8)])
def test_quantized_weights_count_at_their_width(low: int, high: int, weight_bytes: int) -> None:
    """15 weights in int8 or packed int4, 5 biases in int32, a scale and zero point a channel, one pair for x."""
    found = cost(quantized_linear(low, high))
    assert found.parameters == 20
    assert found.parameter_bytes == weight_bytes + 5 * 4 + 5 * (4 + 4) + (4 + 4)
    assert found.macs == 2 * 3 * 5


def test_a_value_that_is_quantized_lives_in_bytes() -> None:
    program = quantized_linear(-127, 127)
    names = {node.target: node.name for node in program.graph.nodes}
    nodes = cost(program).nodes
    assert nodes[program.placeholders[0].name].activation_bytes == 2 * 3
    assert nodes[names[torch.ops.aten.linear.default]].activation_bytes == 4 * 2 * 5
    assert all(nodes[n.name].activation_bytes == 0 for n in program.graph.nodes if n.target is FAKE_QUANTIZE)
    assert nodes[names[torch.ops.aten.linear.default]].parameters == 20


# -- totals and sizes ------------------------------------------------------------------------------------------------


def test_totals_are_sums_over_the_nodes() -> None:
    program = trace(Call(random_net(1)[0]), (random_net(1)[1],))
    found: Cost = program.cost()
    assert list(found.nodes) == [node.name for node in program.graph.nodes]
    for total in ("macs", "parameters", "parameter_bytes"):
        assert getattr(found, total) == sum(getattr(node, total) for node in found.nodes.values())


def test_dynamic_dimensions_are_one_unless_chosen() -> None:
    program = trace(Call(random_net(0)[0]), (random_net(0)[1],), dynamic={"x": {0: "batch"}})
    one, four = cost(program), cost(program, {"batch": 4})
    assert (four.macs, four.parameters) == (4 * one.macs, one.parameters)
    assert four.peak_activation_bytes == 4 * one.peak_activation_bytes
    assert one.macs == cost(trace(Call(random_net(0)[0]), (random_net(0)[1][:1],))).macs


def test_sizes_are_checked() -> None:
    program = trace(Call(nn.Linear(3, 5)), (torch.randn(2, 3),), dynamic={"x": {0: "batch"}})
    with pytest.raises(SignatureError, match="no dynamic dimension 'bach'"):
        cost(program, {"bach": 7})
    with pytest.raises(SignatureError, match="'batch' cannot be 0"):
        cost(program, {"batch": 0})
