"""What the loop asks of accelerate: the device, the precision, and how processes work together."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from tersor.ir.errors import MissingDependencyError, TrainingError

from ..processes import join_processes, on_cpu, world
from .options import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

_NAMES = {Precision.FLOAT32: "no", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "fp16"}


def accelerator(precision: Precision) -> Accelerator:
    """accelerate's view of this process: alone, or one of those that torchrun or `accelerate launch` started.

    Raises MissingDependencyError without the package, TrainingError where the device cannot compute in that precision.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingDependencyError("training needs accelerate", hint="pip install 'tersor[training]'")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    # The state is one a process and refuses another precision; what connects the processes is kept.
    AcceleratorState._reset_state()
    sparse = DistributedDataParallelKwargs(find_unused_parameters=True)
    join_processes()
    found = Accelerator(mixed_precision=_NAMES[precision], cpu=on_cpu(), kwargs_handlers=[sparse])
    if found.num_processes != world():
        raise TrainingError("accelerate does not see all processes", expected=world(), found=found.num_processes)
    if precision is Precision.FLOAT16 and found.device.type == "cpu":
        raise TrainingError("a CPU cannot train in float16", expected="a GPU", hint="precision=Precision.BFLOAT16")
    return found
