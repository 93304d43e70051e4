"""A program runs as the model does, and its parts can be copied, replaced and switched."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import SignatureError
from tersor.ir.origin import Origin
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.shapes import shape_of
from tersor.ir.sparsity import Unstructured

aten = torch.ops.aten


class Net(nn.Module):
    """Batch norm, dropout and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.spatial = nn.Dropout2d(0.5)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.spatial(self.norm(self.conv(x)).relu())
        result: Tensor = self.second(self.drop(self.first(hidden.mean((2, 3)))))
        return result


def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@cache
def traced() -> Program:
    return trace(model(), (torch.randn(2, 3, 6, 6),), dynamic={"x": {0: "batch"}})


def program() -> Program:
    """A fresh program with tensors of its own."""
    found = traced().copy()
    found.set_tensors({name: tensor.detach().clone() for name, tensor in found.parameters().items()})
    return found


def x(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(batch))


# -- running ---------------------------------------------------------------------------------------------------------


def test_it_computes_what_the_model_computes() -> None:
    ours, eager = program(), model()
    for batch in (1, 2, 5):
        assert torch.equal(ours(x(batch)), eager(x(batch)))
        assert torch.equal(ours(x=x(batch)), eager(x(batch)))
    with pytest.raises(SignatureError):
        ours(x()[:, :2])


def test_training_is_the_models_training() -> None:
    """Batch statistics, the running statistics they leave, and dropout's choices, from the same seed."""
    ours, eager = program(), model()
    for name in ("norm.running_mean", "norm.running_var"):
        ours.set_tensor(name, ours.tensor(name).clone())
    ours.train()
    eager.train()
    for step in range(2):
        torch.manual_seed(step)
        result = ours(x())
        torch.manual_seed(step)
        assert torch.equal(result, eager(x()))
    for name in ("norm.running_mean", "norm.running_var"):
        assert torch.equal(ours.tensor(name), eager.get_buffer(name))
    assert torch.equal(ours.eval()(x()), eager.eval()(x()))


def test_switching_back_and_forth_changes_nothing_else() -> None:
    ours = program()
    before = str(ours)
    assert str(ours.train()) != before
    assert str(ours.eval()) == before


def test_gradients_are_the_models() -> None:
    ours, eager = program(), model()
    ours(x()).square().sum().backward()
    eager(x()).square().sum().backward()
    theirs = dict(eager.named_parameters())
    assert ours.parameters().keys() == theirs.keys()
    for name, parameter in ours.parameters().items():
        grad, their_grad = parameter.grad, theirs[name].grad
        assert grad is not None
        assert their_grad is not None
        assert torch.allclose(grad, their_grad, atol=1e-6), name


def test_training_a_program_leaves_the_users_model_alone() -> None:
    eager = model()
    before = {name: tensor.clone() for name, tensor in eager.state_dict().items()}
    ours = trace(eager, (x(),)).train()
    optimizer = torch.optim.SGD(ours.parameters().values(), lr=0.1)
    ours(x()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in eager.state_dict().items())
    assert not torch.equal(ours.tensor("conv.weight"), eager.conv.weight)
    assert all(parameter.grad is None for parameter in eager.parameters())


# -- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_shares_tensors_and_not_the_graph() -> None:
    ours = program()
    copy = ours.copy()
    assert str(copy) == str(ours)
    assert {name: id(t) for name, t in copy.tensors().items()} == {name: id(t) for name, t in ours.tensors().items()}
    text, result = str(ours), ours(x())
    relu = next(node for node in copy.graph.nodes if node.target == aten.relu.default)
    with copy.graph.inserting_before(relu):
        new = copy.call(aten.neg.default, [relu.args[0]], like=relu)
    copy.replace(relu, new)
    copy.changed()
    copy.set_tensor("conv.weight", torch.zeros_like(copy.tensor("conv.weight")))
    copy.sparsity["conv.weight"] = Unstructured(0.5)
    copy.recorded(HistoryEntry("edit"))
    assert str(ours) == text
    assert torch.equal(ours(x()), result)
    assert (ours.sparsity, ours.history) == ({}, traced().history)
    copy.verify()
    ours.verify()


# -- tensors ---------------------------------------------------------------------------------------------------------


def test_replacing_a_tied_tensor_replaces_it_under_each_name() -> None:
    ours = program()
    assert ours.tensor("first.weight") is ours.tensor("second.weight")
    ours.set_tensor("second.weight", torch.eye(4))
    assert ours.tensor("first.weight") is ours.tensor("second.weight")
    assert torch.equal(ours.tensor("first.weight"), torch.eye(4))
    ours.verify()


def test_a_replaced_tensor_stays_what_it_was() -> None:
    ours = program()
    ours.tensor("conv.bias").requires_grad_(False)
    ours.set_tensors(
        {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4), "norm.running_mean": torch.ones(4)}
    )
    assert isinstance(ours.tensor("conv.weight"), nn.Parameter)
    assert ours.tensor("conv.weight").requires_grad
    assert not ours.tensor("conv.bias").requires_grad
    assert not isinstance(ours.tensor("norm.running_mean"), nn.Parameter)
    with pytest.raises(KeyError):
        ours.set_tensor("conv.wait", torch.zeros(1))


@pytest.mark.parametrize("name", ["", "conv", "conv.none", "none.weight", "conv.weight.data"])
def test_a_name_without_a_tensor(name: str) -> None:
    with pytest.raises(KeyError):
        program().tensor(name)


def test_added_tensors_get_names_of_their_own() -> None:
    ours = program()
    names = [ours.add_tensor("conv.scale", torch.tensor(float(i))) for i in range(3)]
    assert names == ["conv.scale", "conv.scale_1", "conv.scale_2"]
    assert [float(ours.tensor(name)) for name in names] == [0.0, 1.0, 2.0]
    assert ours.add_tensor("conv.weight", torch.zeros(1)) == "conv.weight_1"
    assert ours.add_tensor("new.deep.scale", nn.Parameter(torch.ones(1))) == "new.deep.scale"
    assert "new.deep.scale" in ours.parameters()
    assert "conv.scale" not in ours.parameters()


@pytest.mark.parametrize("name", ["forward", "conv", "graph", "conv.training"])
def test_names_that_mean_something_else_already(name: str) -> None:
    ours = program()
    added = ours.add_tensor(name, torch.tensor(5.0))
    assert added != name
    assert float(ours.tensor(added)) == 5
    assert added in ours.tensors()
    assert torch.equal(ours(x()), model()(x()))


def test_unused_tensors_go_with_their_sparsity() -> None:
    ours = program()
    ours.add_tensor("spare", torch.zeros(2))
    ours.sparsity["spare"] = Unstructured(1.0)
    assert ours.remove_unused_tensors() == ["spare"]
    assert "spare" not in ours.tensors()
    assert ours.sparsity == {}
    assert ours.remove_unused_tensors() == []
    assert "second.weight" in ours.tensors()


# -- nodes -----------------------------------------------------------------------------------------------------------


def node_of(ours: Program, target: Callable[..., object]) -> torch.fx.Node:
    found: torch.fx.Node
    (found,) = ours.graph.find_nodes(op="call_function", target=target)
    return found


def test_a_new_node_has_shape_origin_and_what_it_replaces() -> None:
    ours = program()
    relu = node_of(ours, aten.relu.default)
    with ours.graph.inserting_after(relu):
        first = ours.call(aten.hardtanh.default, [relu.args[0], 0, 6], like=relu)
    with ours.graph.inserting_after(first):
        second = ours.call(aten.neg.default, [first], like=first)
    assert shape_of(ours, first) == ("batch", 4, 4, 4)
    assert Origin.of(first) == Origin.of(second) == Origin.of(relu) is not None
    assert first.meta["replaces"] == second.meta["replaces"] == relu.name
    ours.replace(relu, second)
    ours.changed()
    ours.verify()
    assert torch.isfinite(ours(x())).all()


def test_a_read_of_a_tensor_has_a_shape() -> None:
    ours = program()
    name = ours.add_tensor("scale", torch.ones(3, dtype=torch.float64))
    with ours.graph.inserting_before(node_of(ours, aten.relu.default)):
        node = ours.attribute(name)
    assert (shape_of(ours, node), node.meta["val"].dtype) == ((3,), torch.float64)
    assert ours.constant(node) is ours.tensor(name)
    assert ours.constant(ours.placeholders[0]) is None
    assert ours.constant(3) is None


def test_its_repr_is_one_line() -> None:
    text = repr(program())
    assert text.startswith("<Program Net: float, ")
    assert "x: float32[batch, 3, 6, 6]" in text
