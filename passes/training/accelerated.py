"""What the loop asks of accelerate: the device, the precision, and how processes work together."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from tersor.ir.errors import MissingDependencyError, TrainingError

from ..processes import join_processes, on_cpu, world
from .options import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

_NAMES = {Precision.FLOAT32: "no", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "fp16"}


def accelerator(precision: Precision, device: torch.device | None = None) -> Accelerator:
    """accelerate's view of this process: alone, or one of those that torchrun or `accelerate launch` started.

    device: that of a task that cannot be moved; None takes a GPU where there is one.

    Raises MissingDependencyError without the package, TrainingError where the device cannot compute in that precision.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingDependencyError("training needs accelerate", hint="pip install 'tersor[training]'")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    # The state is one a process and refuses another precision or device; what connects processes is kept.
    AcceleratorState._reset_state(reset_partial_state=world() == 1)
    sparse = DistributedDataParallelKwargs(find_unused_parameters=True)
    join_processes()
    cpu = on_cpu() or (device is not None and device.type == "cpu")
    found = Accelerator(mixed_precision=_NAMES[precision], cpu=cpu, kwargs_handlers=[sparse])
    if found.num_processes != world():
        raise TrainingError("accelerate does not see all processes", expected=world(), found=found.num_processes)
    if precision is Precision.FLOAT16 and found.device.type == "cpu":
        raise TrainingError("a CPU cannot train in float16", expected="a GPU", hint="precision=Precision.BFLOAT16")
    return found
