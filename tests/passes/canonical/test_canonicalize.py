from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.program import REPLACES, Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

from ...small_transformers import MODELS, built, traced

aten = torch.ops.aten


class Function(nn.Module):
    """A function as a model, with buffers and parameters that it may read."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def program_of(function: Callable[..., Any], x: Tensor, dynamic: Any = None, **tensors: Tensor) -> Program:
    return trace(Function(function, **tensors), (x,), dynamic=dynamic)


def lines(program: Program) -> list[str]:
    """The text of the calls and of what is returned, without types."""
    body = [line.strip() for line in str(program).splitlines()[1:] if " dim " not in line]
    return [line.split(" = ", 1)[-1] for line in body if not line.startswith("input")]


def canonical(program: Program, x: Tensor, **options: Any) -> list[str]:
    """Canonicalize, check that the outputs stay, and give the text."""
    result = Canonicalize(**options)(program)
    torch.testing.assert_close(result(x), program(x), rtol=1e-6, atol=1e-6)
    return lines(result)


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WEIGHT = nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1)))


WITHOUT_EFFECT: tuple[Callable[..., Tensor], ...] = (
    lambda m, x: x.clone(),
    lambda m, x: x.detach(),
    lambda m, x: F.dropout(x, 0.5, training=False),
    lambda m, x: F.dropout2d(x, 0.5, training=False),
    lambda m, x: x.to(torch.float32).type_as(x),
    lambda m, x: x + 0,
    lambda m, x: 0 + x,
    lambda m, x: x - 0.0,
    lambda m, x: x * 1.0 / 1,
    lambda m, x: x**1,
    lambda m, x: x + torch.zeros(()),
    lambda m, x: torch.ones(1) * x,
    lambda m, x: x.reshape(x.shape).expand(-1, 3, 6, 6),
    lambda m, x: x[:, :, 0:6],
    lambda m, x: x.permute(0, 1, 2, 3),
    lambda m, x: x.transpose(1, 2).transpose(2, 1),
    lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    lambda m, x: x.permute(0, 1, 3, 2).transpose(-1, -2),
    lambda m, x: x.unsqueeze(0).squeeze(0),
    lambda m, x: x.flatten().reshape(2, 3, 6, 6),
    lambda m, x: F.pad(x, (0, 0, 0, 0)),
    lambda m, x: F.pad(x, (0, 0, 0, 0), mode="reflect"),
)


def test_what_changes_nothing_is_removed() -> None:
    program = program_of(lambda m, x: tuple(function(m, x) for function in WITHOUT_EFFECT), IMAGE)
    (returned,) = canonical(program, IMAGE)
    assert returned == "return " + ", ".join(f"output_{i}=%x" for i in range(len(WITHOUT_EFFECT)))


WITH_EFFECT: tuple[Callable[..., Tensor], ...] = (
    lambda m, x: x + torch.zeros(2, 2, 3, 6, 6),
    lambda m, x: x.double(),
    lambda m, x: x * torch.ones((), dtype=torch.float64).reshape(1).double(),
    lambda m, x: x[:, 0:2],
    lambda m, x: x.transpose(1, 2).transpose(1, 3),
    lambda m, x: x.unsqueeze(0),
    lambda m, x: torch.add(torch.zeros(1), x, alpha=2),
    lambda m, x: 0 - x,
    lambda m, x: x / 2,
    lambda m, x: F.pad(x, (1, -1)),
)


def test_what_changes_type_or_values_is_kept() -> None:
    program = program_of(lambda m, x: tuple(function(m, x) for function in WITH_EFFECT), IMAGE)
    assert "=%x" not in canonical(program, IMAGE)[-1]


def test_integers_divided_by_one_become_floats_and_stay_divided() -> None:
    x = torch.arange(4)
    assert canonical(program_of(lambda m, x: x / 1, x), x)[0] == "aten.div.Tensor(%x, 1)"


def test_constants_are_folded_into_buffers_named_after_their_nodes() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        positions: Tensor = torch.arange(6) * 2 + m.offset
        return x + positions.float().cos()

    program = program_of(function, IMAGE, offset=torch.tensor([1]))
    result = Canonicalize()(program)
    assert lines(result) == ["aten.add.Tensor(%x, @cos)", "return output=%add_1"]
    torch.testing.assert_close(result.tensor("cos"), (torch.arange(6) * 2 + 1).float().cos())
    assert list(result.tensors()) == ["cos"]
    (read,) = result.graph.find_nodes(op="get_attr")
    assert read.meta[REPLACES] == "cos"
    assert result.history[-1].notes == ("constants folded: 5",)


def test_tuples_of_constants_are_folded() -> None:
    program = program_of(lambda m, x: x + m.k.split(2)[1].sort().values, torch.randn(2), k=torch.tensor([1.0, 2, 4, 3]))
    result = Canonicalize()(program)
    (name,) = result.tensors()
    assert result.tensor(name).tolist() == [3, 4]


def test_folding_stops_at_what_trains_or_is_random() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return x + torch.outer(m.weight, m.weight), torch.rand(6) + x, torch.dropout(m.fixed, 0.5, True) + x

    program = program_of(function, IMAGE, weight=nn.Parameter(torch.ones(6)), fixed=torch.ones(6))
    result = Canonicalize()(program)
    assert {str(node.target) for node in result.graph.nodes if node.op == "call_function"} == {
        "aten.outer.default",
        "aten.add.Tensor",
        "aten.rand.default",
        "aten.dropout.default",
    }
    assert isinstance(result.tensor("weight"), nn.Parameter)


def test_large_constants_stay_computed() -> None:
    program = program_of(lambda m, x: x + torch.full((6,), 0.5).sin().expand(1000, 1, 6, 6), IMAGE[:1])
    result = Canonicalize(growth=64)(program)
    assert lines(result)[0] == "aten.expand(@sin, [1000, 1, 6, 6])"
    assert lines(Canonicalize()(program))[0] == "aten.add.Tensor(%x, @expand)"


def test_what_depends_on_sizes_alone_is_constant_unless_they_are_dynamic() -> None:
    program = program_of(lambda m, x: torch.ones_like(x) + x.relu(), IMAGE)
    assert lines(Canonicalize()(program))[-2] == "aten.add.Tensor(@ones_like, %relu)"
    program = program_of(lambda m, x: torch.ones_like(x) + x.relu(), IMAGE, dynamic={"x": {0: "batch"}})
    assert canonical(program, IMAGE)[0].startswith("aten.ones_like(%x")


def test_an_index_that_every_run_refuses_is_refused_here() -> None:
    tensors = {"table": torch.ones(2), "index": torch.tensor([1])}
    program = program_of(lambda m, x: x + m.table[m.index], torch.randn(2), **tensors)
    program.set_tensor("index", torch.tensor([7]))
    with pytest.raises(PassError, match="from constants") as error:
        Canonicalize()(program)
    assert error.value.node is not None


def test_reshapes_are_merged() -> None:
    program = program_of(lambda m, x: x.flatten(1).unsqueeze(0).reshape(2, 3, -1), IMAGE, dynamic={"x": {2: "height"}})
    assert canonical(program, IMAGE) == ["aten.reshape(%x, [2, 3, -1])", "return output=%reshape_1"]


def test_permutations_are_merged() -> None:
    program = program_of(lambda m, x: x.permute(0, 2, 3, 1).permute(3, 0, 1, 2), IMAGE)
    assert canonical(program, IMAGE) == ["aten.permute(%x, [1, 0, 2, 3])", "return output=%permute_1"]


def test_zero_pads_become_padding_of_every_convolution_that_reads_them() -> None:
    def function(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (2, 2, 1, 1))
        return F.conv2d(padded, m.w), F.conv2d(padded, m.w, padding=1, dilation=2)

    assert canonical(program_of(function, IMAGE, w=WEIGHT), IMAGE) == [
        "aten.conv2d(%x, @w, None, [1, 1], [1, 2])",
        "aten.conv2d(%x, @w, None, [1, 1], [2, 3], [2, 2])",
        "return output_0=%conv2d, output_1=%conv2d_1",
    ]


def test_other_pads_stay() -> None:
    def function(m: Any, x: Tensor) -> Any:
        uneven, negative = F.pad(x, (1, 0, 1, 0)), F.pad(x, (-1, -1, 0, 0))
        reflected, filled = F.pad(x, (1, 1, 1, 1), mode="reflect"), F.pad(x, (1, 1, 1, 1), value=0.5)
        return tuple(F.conv2d(padded, m.w) for padded in (uneven, negative, reflected, filled))

    text = canonical(program_of(function, IMAGE, w=WEIGHT), IMAGE)
    assert len([line for line in text if line.startswith("aten.pad(")]) == 4


def test_pads_of_channels_and_of_batches_stay() -> None:
    program = program_of(lambda m, x: F.conv2d(F.pad(x, (0, 0, 0, 0, 1, 1)), m.w), IMAGE[:, :1], w=WEIGHT)
    assert canonical(program, IMAGE[:, :1])[0].startswith("aten.pad(")


def test_padding_given_as_a_word() -> None:
    def function(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (1, 1))
        return F.conv2d(padded, m.w, padding="valid"), F.conv2d(padded, m.w, padding="same")

    assert canonical(program_of(function, IMAGE, w=WEIGHT), IMAGE)[:2] == [
        "aten.conv2d(%x, @w, None, [1, 1], [0, 1])",
        "aten.conv2d(%x, @w, None, [1, 1], [1, 2])",
    ]


def test_the_same_size_from_an_even_kernel_takes_a_zero_more_at_the_end() -> None:
    weight = WEIGHT[..., :2].clone()
    program = program_of(lambda m, x: F.conv2d(x, m.w, padding="same", dilation=(2, 3)), IMAGE, w=weight)
    assert canonical(program, IMAGE)[:2] == [
        "aten.constant_pad_nd(%x, [0, 1, 0, 0])",
        "aten.conv2d(%constant_pad_nd, @w, None, [1, 1], [2, 1], [2, 3])",
    ]


def test_average_pooling_takes_zeros_that_it_counts() -> None:
    def function(m: Any, x: Tensor) -> Any:
        padded = F.pad(x, (1, 1, 1, 1))
        kept: tuple[dict[str, Any], ...] = ({"count_include_pad": False}, {"ceil_mode": True}, {"padding": 1})
        return F.avg_pool2d(padded, 2), *(F.avg_pool2d(padded, 2, **options) for options in kept)

    text = canonical(program_of(function, IMAGE), IMAGE)
    assert [line.split(",")[0] for line in text[1:5]] == ["aten.avg_pool2d(%x", *["aten.avg_pool2d(%pad"] * 3]


def test_masks_that_hide_nothing_are_dropped() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return tuple(F.scaled_dot_product_attention(x, x, x, mask) for mask in (m.all, m.zero, m.causal))

    masks = {"all": torch.ones(6, 6) > 0, "zero": torch.zeros(6, 6), "causal": torch.ones(6, 6).tril() > 0}
    assert canonical(program_of(function, IMAGE, **masks), IMAGE)[:3] == [
        "aten.scaled_dot_product_attention(%x, %x, %x)",
        "aten.scaled_dot_product_attention(%x, %x, %x)",
        "aten.scaled_dot_product_attention(%x, %x, %x, @causal)",
    ]


def test_dead_nodes_go() -> None:
    program = program_of(lambda m, x: x.relu(), IMAGE)
    with program.graph.inserting_before(program.graph.output_node()):
        program.call(aten.dropout.default, (program.placeholders[0], 0.5, True), like=program.outputs[0])
    result = Canonicalize()(program)
    assert lines(result) == ["aten.relu(%x)", "return output=%relu"]
    assert result.history[-1].notes == ("dead nodes removed: 1",)


def test_a_program_that_is_trained_later_keeps_dropout_and_detach() -> None:
    program = program_of(lambda m, x: F.dropout(x, 0.5, training=False).detach() + 0, IMAGE)
    assert canonical(program, IMAGE, keep_training=True) == [
        "aten.dropout(%x, 0.5, False)",
        "aten.detach(%dropout)",
        "return output=%detach",
    ]
    training = Canonicalize()(program.copy().train())
    assert lines(training)[0] == "aten.dropout(%x, 0.5, True)"


def test_copies_that_as_strided_reads_stay() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).as_strided((2, 2), (1, 3))

    x = torch.arange(6.0).reshape(2, 3)
    assert "aten.clone" in " ".join(canonical(program_of(function, x), x))


def test_a_second_run_finds_nothing() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(F.pad(x.clone(), (1, 1)), (0, 0, 1, 1)), m.w).flatten(2).flatten(1).reshape(2, -1) * 1.0

    once = Canonicalize()(program_of(function, IMAGE, w=WEIGHT))
    twice = Canonicalize().run(once.copy())
    assert not twice.modified
    assert str(twice.program) == str(once)


def test_origins_stay_and_the_input_program_is_left_alone() -> None:
    program = program_of(lambda m, x: F.conv2d(F.pad(x, (1, 1)), m.w) + torch.arange(6.0), IMAGE, w=WEIGHT)
    text, before = str(program), {name: (t, t._version, t.clone()) for name, t in program.tensors().items()}
    result = Canonicalize()(program)
    assert str(program) == text
    for name, (tensor, version, values) in before.items():
        assert program.tensor(name) is tensor
        assert tensor._version == version
        assert torch.equal(tensor, values)
    assert all("origin" in node.meta for node in result.graph.nodes if node.op == "call_function")


def chain(nodes: int) -> Program:
    """A program of so many nodes, of which four in five can go."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(nodes // 5):
        value = graph.call_function(aten.clone.default, (value,))
        value = graph.call_function(aten.add.Tensor, (value, graph.call_function(aten.zeros.default, ([1],))))
        value = graph.call_function(
            aten.relu.default, (graph.call_function(aten.dropout.default, (value, 0.5, False)),)
        )
    graph.output((value,))
    leaf = Structure("leaf")
    spec = TensorSpec("x", torch.float32, (4,))
    return Program.build(graph, {}, Signature((spec,), Structure("tuple", (leaf,)), Structure("dict"), leaf))


def test_time_is_linear_in_the_number_of_nodes() -> None:
    seconds = []
    for nodes in (500, 4_000):
        program = chain(nodes)
        start = time.process_time()
        result = Canonicalize().run(program)
        seconds.append(time.process_time() - start)
        assert len(result.program.graph.nodes) == nodes // 5 + 2
    assert seconds[1] < 8 * 4 * seconds[0] + 0.5  # quadratic would be 64 times


LAYERS = st.sampled_from(
    ["conv", "norm", "relu", "residual", "cat", "dropout", "pad", "pool", "reshape", "scale", "clone"]
)


class RandomNet(nn.Module):
    """Layers one after another on 4 channels of images; batch norms have statistics of their own."""

    def __init__(self, layers: list[str], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = layers
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for layer in layers:
            if layer == "conv":
                self.convolutions.append(nn.Conv2d(4, 4, 3, groups=seed % 2 + 1, bias=seed % 3 > 0))
            if layer == "norm":
                norm = nn.BatchNorm2d(4)
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.normal_(norm.bias)
                norm.running_mean = torch.randn(4)
                norm.running_var = torch.rand(4) + 0.5
                self.norms.append(norm)

    def forward(self, x: Tensor) -> Tensor:
        convolutions, norms = iter(self.convolutions), iter(self.norms)
        steps: dict[str, Callable[[Tensor], Tensor]] = {
            "conv": lambda x: next(convolutions)(F.pad(x, (1, 1, 1, 1))),
            "norm": lambda x: next(norms)(x),
            "relu": torch.relu,
            "residual": lambda x: x + torch.tanh(x),
            "cat": lambda x: torch.cat([x[:, :2], x[:, 2:]], 1) + torch.arange(4.0, dtype=x.dtype).reshape(4, 1, 1),
            "dropout": lambda x: F.dropout(x, 0.3, self.training),
            "pad": lambda x: F.pad(x, (1, 0, 0, 1)),
            "pool": lambda x: F.avg_pool2d(F.pad(x, (1, 1)), 3, 1),
            "reshape": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
            "scale": lambda x: x * 1.0 + 0,
            "clone": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        }
        for layer in self.layers:
            x = steps[layer](x)
        return x


@settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
@given(layers=st.lists(LAYERS, min_size=1, max_size=10), seed=st.integers(0, 50), dynamic=st.booleans())
def test_random_networks_keep_their_outputs(layers: list[str], seed: int, dynamic: bool) -> None:
    model = RandomNet(layers, seed).double().eval()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    program = trace(model, (x,), dynamic={"x": {0: "batch"}} if dynamic else None)
    canonical = Canonicalize()(program)
    folded = FoldBatchNorm()(canonical)
    torch.testing.assert_close(canonical(x), model(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert not {"aten.dropout.default", "aten.clone.default"} & {str(node.target) for node in folded.graph.nodes}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_keep_their_outputs(name: str) -> None:
    (model, inputs), program = built(name), traced(name)
    result = FoldBatchNorm()(Canonicalize()(program))
    with torch.no_grad():
        expected = model(**inputs)
    key = "logits" if "logits" in expected else "last_hidden_state"
    torch.testing.assert_close(result(**inputs)[key], expected[key], rtol=1e-4, atol=1e-4)
    targets = [str(node.target) for node in result.graph.nodes]
    assert not {"aten.batch_norm.default", "aten.dropout.default", "aten.arange.default", "aten.clone.default"} & {
        *targets
    }
    assert len(targets) < len(program.graph.nodes)
