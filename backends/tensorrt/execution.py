"""An engine on a GPU: torch tensors in and out, nothing through the host, CUDA graphs where shapes are fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import ArchiveError, SignatureError

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


def load_engine(trt: Any, path: Path) -> Any:
    """Deserialize a plan. Raises ArchiveError with what TensorRT says of one that is damaged or does not fit."""
    complaints: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # found at run time
        """Keeps errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                complaints.append(text)

    runtime = trt.Runtime(Logger())
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        found = "\n".join(complaints)[:2000] or "no reason given"
        raise ArchiveError(f"TensorRT cannot load {path}", found=found, hint="lower the program again, here")
    return engine


class EngineRunner:
    """An engine with its execution context and stream.

    inputs, outputs: their names in the order of the program, some of which the engine may not read; None takes the
        engine's own order.
    device: where inputs are moved to and outputs are made.
    graphs: capture the launches into a CUDA graph once, and replay it, where no shape is dynamic.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        *,
        device: str = "cuda",
        graphs: bool = True,
    ) -> None:
        self.engine, self.device = engine, torch.device(device)
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        modes = {name: engine.get_tensor_mode(name) for name in names}
        read = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.given = read if inputs is None else list(inputs)
        self.inputs = [name for name in self.given if name in read]
        made = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        self.outputs = made if outputs is None else list(outputs)
        if set(self.inputs) != set(read) or set(self.outputs) != set(made):
            raise ArchiveError(
                "the engine's tensors are not the program's",
                expected=f"{', '.join(self.given)} to {', '.join(self.outputs)}",
                found=f"{', '.join(read)} to {', '.join(made)}",
                hint="lower the program again",
            )
        self.static = all(-1 not in tuple(engine.get_tensor_shape(name)) for name in names)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._graph = _Graph(self) if graphs and self.static and self._stream is not None else None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run; outputs are where the first input is. Raises SignatureError where no profile takes the shapes."""
        home = inputs[0].device if inputs else self.device
        placed = self._place(inputs)
        outputs = self.launch(placed) if self._graph is None else self._graph.run(placed)
        return [output.to(home) for output in outputs]

    def run_named(self, inputs: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Each output with its name."""
        yield from zip(self.outputs, self.run(inputs), strict=True)

    def latency(self, inputs: Sequence[Tensor]) -> float:
        """Seconds that the GPU takes for one run on inputs that are there already."""
        placed = self._place(inputs)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if self._graph is None:
            start.record()
            self.launch(placed)
        else:
            self._graph.place(placed)
            start.record()
            self._graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def launch(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Bind and enqueue on inputs that are on the device; the outputs, once they are there."""
        self._choose_profile(inputs)
        for name, tensor in zip(self.inputs, inputs, strict=True):
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise self._does_not_take(name, tensor)
            self.context.set_tensor_address(name, tensor.data_ptr())
        outputs = [self._output(name) for name in self.outputs]
        self.enqueue()
        return outputs

    def enqueue(self) -> None:
        """Run with what is bound, in the order of torch's own stream."""
        if self._stream is None:
            self._execute(0)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._execute(self._stream.cuda_stream)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _execute(self, stream: int) -> None:
        if not self.context.execute_async_v3(stream):
            raise ArchiveError("TensorRT failed while running the engine", hint="see what it wrote to stderr")

    def _place(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The inputs that the engine reads, on its device, of its types."""
        read = frozenset(self.inputs)
        pairs = zip(self.given, inputs, strict=True)
        return [self._placed(name, tensor) for name, tensor in pairs if name in read]

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, _DTYPES[self.engine.get_tensor_dtype(name).name]).contiguous()

    def _output(self, name: str) -> Tensor:
        """A new tensor for an output, of the shape that follows from the inputs."""
        shape = tuple(self.context.get_tensor_shape(name))
        if -1 in shape:
            raise SignatureError(f"the size of output {name!r} depends on the data", found=shape)
        dtype = _DTYPES[self.engine.get_tensor_dtype(name).name]
        output = torch.empty(shape, dtype=dtype, device=self.device)
        self.context.set_tensor_address(name, output.data_ptr())
        return output

    def _choose_profile(self, inputs: Sequence[Tensor]) -> None:
        """The first profile that takes all the shapes."""
        shapes = {name: tuple(tensor.shape) for name, tensor in zip(self.inputs, inputs, strict=True)}
        for index in range(self.engine.num_optimization_profiles):
            if all(self._fits(name, shape, index) for name, shape in shapes.items()):
                if self.context.active_optimization_profile != index:
                    stream = 0 if self._stream is None else self._stream.cuda_stream
                    self.context.set_optimization_profile_async(index, stream)
                return
        name, tensor = next(iter(zip(self.inputs, inputs, strict=True)))
        raise self._does_not_take(name, tensor, shapes)

    def _fits(self, name: str, shape: tuple[int, ...], index: int) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, index)
        return len(least) == len(shape) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )

    def _does_not_take(
        self, name: str, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> SignatureError:
        spans = [self.engine.get_tensor_profile_shape(name, i) for i in range(self.engine.num_optimization_profiles)]
        expected = " or ".join(f"{tuple(least)} to {tuple(most)}" for least, _, most in spans)
        return SignatureError(
            f"no optimization profile of the engine takes input {name!r}",
            expected=expected,
            found=shapes or tuple(tensor.shape),
            hint="lower with profiles=({...},) that include this size",
        )


class _Graph:
    """The launches of one run, captured once and replayed on inputs that are copied into fixed places on the GPU."""

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._captured: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Replay on these inputs; the outputs are the caller's."""
        self.place(inputs)
        self.replay()
        return [output.clone() for output in self._outputs]

    def place(self, inputs: Sequence[Tensor]) -> None:
        """Copy inputs to where the graph reads them, which is captured first where it has not been."""
        if self._captured is None:
            self._capture(inputs)
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)

    def replay(self) -> None:
        """Launch everything that was captured."""
        assert self._captured is not None
        self._captured.replay()

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        """Run once outside, since the first run compiles kernels and allocates, then record a second."""
        runner, graph = self._runner, torch.cuda.CUDAGraph()
        self._inputs = [tensor.clone() for tensor in inputs]
        self._outputs = runner.launch(self._inputs)
        torch.cuda.synchronize(runner.device)
        with torch.cuda.graph(graph):
            runner._execute(torch.cuda.current_stream(runner.device).cuda_stream)
        self._captured = graph
