"""A second device that every machine has: tensors that say they are elsewhere and compute on the CPU.

It refuses what a GPU refuses: tensors of two devices in one operator (one number on the CPU may join), a numpy array of
a tensor that is elsewhere, random numbers from a generator of the CPU. And it divides as CUDA does: by a number on the
CPU, it multiplies by the reciprocal, which gives other bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tersor.ir import block_operators, integer_norms, integer_operators, operators

aten = torch.ops.aten

ELSEWHERE = torch.device("lazy", 0)
"""A device type that autograd runs on the calling thread."""

_LOOKS = (aten.is_same_size.default, aten._local_scalar_dense.default, aten.equal.default)
_DIVISIONS = (aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.true_divide.Tensor)


class ElsewhereTensor(Tensor):
    """A tensor on the second device; `held` is where its values are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> ElsewhereTensor:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"elsewhere({self.held!r})"

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert a tensor that is elsewhere to numpy; use Tensor.cpu() first")
        return self.held.numpy(force=True)

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def cpu(self, memory_format: Any = torch.preserve_format) -> Tensor:
        return self.to("cpu")

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch's own do

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # torch's stub is of no use
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors elsewhere where an operator names that device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == ELSEWHERE.type:
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The second device, as long as the block runs."""
    with _Factories():  # type: ignore[no-untyped-call]  # torch
        yield ELSEWHERE


_OWN = {
    getattr(torch.ops.tersor, name).default: reference
    for name, (_, reference, _) in integer_operators.OPERATORS.items()
} | {
    torch.ops.tersor.int_softmax.default: integer_norms.int_softmax,
    torch.ops.tersor.int_normalize.default: integer_norms.int_normalize,
    torch.ops.tersor.fake_quantize.default: operators._fake_quantize,
    torch.ops.tersor.fake_quantize_bias.default: operators._fake_quantize_bias,
    torch.ops.tersor.fake_quantize_blocks.default: block_operators._fake_quantize_blocks,
    torch.ops.tersor.fake_quantize_dynamic.default: block_operators._fake_quantize_dynamic,
}
"""tersor's own operators are made of others, which a device runs one by one."""


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in _OWN:
        with _Factories():  # type: ignore[no-untyped-call]  # torch; the mode is off while an operator is handled
            return _OWN[func](*args, **kwargs)
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    copies = func is aten._to_copy.default or func is aten.copy_.default
    away = [tensor for tensor in given if isinstance(tensor, ElsewhereTensor)]
    if not copies and away:
        _refuse_two_devices(func, given, args)
    _refuse_generator(kwargs, args)
    inner = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs
    function = func
    if func in _DIVISIONS and isinstance(args[0], ElsewhereTensor):
        function, args = _as_cuda_divides(func, args)
    found = function(*tree_map(_held, args), **tree_map(_held, inner))
    if func in _LOOKS or (target is not None and target.type != ELSEWHERE.type):
        return found
    if func._schema.is_mutable and given and any(found is _held(tensor) for tensor in given):
        return next(tensor for tensor in given if _held(tensor) is found)
    return tree_map(lambda value: ElsewhereTensor(value) if type(value) in (Tensor, nn.Parameter) else value, found)


def _as_cuda_divides(func: Any, args: Any) -> tuple[Any, Any]:
    """By a number on the CPU: times its reciprocal, in the type of the tensor."""
    x, divisor = args[:2]
    number = not isinstance(divisor, Tensor) or (divisor.device.type == "cpu" and divisor.dim() == 0)
    if not number or not x.is_floating_point():
        return func, args
    return torch.mul, (x, torch.tensor(1.0, dtype=x.dtype) / torch.as_tensor(divisor, dtype=x.dtype))


def _refuse_two_devices(func: Any, given: list[Tensor], args: Any) -> None:
    indexing = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
    here = [t for t in given if not isinstance(t, ElsewhereTensor) and (t.dim() or func is aten.index_select.default)]
    if indexing and isinstance(args[0], ElsewhereTensor):
        here = [t for t in here if t.dtype not in (torch.int64, torch.bool, torch.int32, torch.uint8)]
    if here:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found elsewhere and cpu: {func}")


def _refuse_generator(kwargs: dict[str, Any], args: Any) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a generator of the device elsewhere, but found one of the cpu")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, ElsewhereTensor) else value
