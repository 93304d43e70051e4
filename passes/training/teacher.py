"""A teacher: any program or module, asked for logits and hidden states, once for each sample where that can be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError
from tersor.ir.operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from tersor.ir.placement import move
from tersor.ir.program import Program
from tersor.ir.stage import Stage
from tersor.ir.structure import flatten

from .batches import Split, moved, tensors_of
from .features import output_of, unknown_module
from .training_graph import owned, tapped

Values = tuple[Tensor, ...]


class Teacher:
    """Outputs, flat, and then the outputs of some modules by their paths. In inference mode, without gradients."""

    def __init__(self, model: Program | nn.Module, paths: Sequence[str], cache_bytes: int) -> None:
        kind = _OfProgram if isinstance(model, Program) else _OfModule
        self.source = kind(model, paths)  # type: ignore[arg-type]  # each takes its own
        self.cache = _Cache(cache_bytes)

    def __call__(self, parts: Split) -> Values:
        """What the teacher says of a batch, float tensors whose first dimension is the batch's."""
        return self.cache.through(parts, self._ask)

    def to(self, device: torch.device) -> None:
        """Move the teacher to a device."""
        self.source.to(device)

    def release(self) -> None:
        """Put a module that was given back where it was."""
        self.source.release()

    def _ask(self, parts: Split) -> Values:
        with torch.no_grad():
            return tuple(value.detach() for value in self.source.run(parts))


class _OfProgram:
    def __init__(self, program: Program, paths: Sequence[str]) -> None:
        taps = [output_of(program, path).name for path in paths]
        self.program = owned(tapped(program, taps).eval(), torch.device("cpu"))

    def run(self, parts: Split) -> Values:
        return self.program.run(parts.inputs(self.program))

    def to(self, device: torch.device) -> None:
        move(self.program, device)

    def release(self) -> None:
        """Nothing was given away: the program is a copy."""


class _OfModule:
    """A module of torch: hooks keep what its parts give."""

    def __init__(self, module: nn.Module, paths: Sequence[str]) -> None:
        self.module, self.paths = module, paths
        self.home = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
        known = dict(module.named_modules())
        for path in paths:
            if path not in known:
                raise unknown_module(path, [name for name in known if name])

    def run(self, parts: Split) -> Values:
        kept: dict[str, Tensor] = {}
        hooks = [self.module.get_submodule(path).register_forward_hook(_keep(kept, path)) for path in self.paths]
        modes = {part: part.training for part in self.module.modules()}
        try:
            self.module.eval()
            args, kwargs = moved((parts.args, dict(parts.kwargs)), self.device)
            outputs, _ = flatten(self.module(*args, **kwargs))
        finally:
            for hook in hooks:
                hook.remove()
            for part, mode in modes.items():
                part.training = mode
        missing = [path for path in self.paths if path not in kept]
        if missing:
            raise TrainingError(f"module {missing[0]!r} of the teacher gave no tensor", hint="name another module")
        return (*outputs, *(kept[path] for path in self.paths))

    @property
    def device(self) -> torch.device:
        """Where the module is now."""
        return next((tensor.device for tensor in self.module.parameters()), self.home)

    def to(self, device: torch.device) -> None:
        self.module.to(device)

    def release(self) -> None:
        """Put the module back."""
        self.module.to(self.home)


def _keep(kept: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        first = next(tensors_of(output if not isinstance(output, Mapping) else tuple(output.values())), None)
        if first is not None:
            kept[path] = first

    return hook


class _Cache:
    """Answers by the bytes of each sample, so that batches may be shuffled.

    It grows up to `limit` bytes. Where it is full and no sample has come twice (augmented data), it is given up.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.rows: dict[bytes, Values] = {}
        self.asked = self.found = 0

    def through(self, parts: Split, ask: Callable[[Split], Values]) -> Values:
        if self.limit <= 0:
            return ask(parts)
        keys = _keys(parts)
        known = [self.rows.get(key) for key in keys]
        self.asked += len(keys)
        self.found += sum(row is not None for row in known)
        if keys and all(row is not None for row in known):
            columns = zip(*known, strict=True)
            return tuple(torch.stack(column) for column in columns)
        answer: Values = ask(parts)
        self._remember(keys, answer)
        return answer

    def _remember(self, keys: list[bytes], answer: Values) -> None:
        if not keys or any(value.dim() == 0 or len(value) != len(keys) for value in answer):
            return
        size = sum(value.numel() * value.element_size() for value in answer)
        if self.used + size > self.limit:
            if not self.found:
                self.limit, self.rows = 0, {}
            return
        self.used += size
        for index, key in enumerate(keys):
            self.rows[key] = tuple(value[index].clone() for value in answer)


def _keys(parts: Split) -> list[bytes]:
    """A digest of each sample; none where the inputs have no common first dimension."""
    tensors = [*tensors_of(parts.args), *tensors_of(dict(parts.kwargs))]
    counts = {len(tensor) if tensor.dim() else -1 for tensor in tensors}
    if len(counts) != 1 or -1 in counts:
        return []
    plain = [tensor.detach().cpu().contiguous() for tensor in tensors]
    keys = []
    for index in range(len(plain[0])):
        digest = hashlib.blake2b(digest_size=16)
        for tensor in plain:
            digest.update(tensor[index].reshape(-1).view(torch.uint8).numpy().data)
        keys.append(digest.digest())
    return keys


def float_self(program: Program) -> Program:
    """The program without its fake-quantize: what it would compute in float."""
    copied = program.copy()
    for target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS):
        for node in copied.graph.find_nodes(op="call_function", target=target):
            copied.replace(node, node.args[0])
    copied.graph.eliminate_dead_code()
    copied.remove_unused_tensors()
    copied.stage = Stage.FLOAT
    copied.changed()
    return copied
