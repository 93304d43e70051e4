"""A plan of mixed precision: what each layer is computed in, as text that people read, edit and replay."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tersor.ir.errors import RecipeError

_HEADER = """\
# A precision plan of tersor. Change a layer's precision and replay it: ApplyPrecision("{name}"), or a recipe with
#   - apply_precision: {{plan: {name}}}
# Precisions: {precisions}
"""


class Precision(enum.Enum):
    """What one layer is computed in.

    FLOAT32: as it is. INT8: weights and activations of 8 bits, activations asymmetric; INT8_SYMMETRIC: with zero
    point 0; W4A8: weights of 4 bits, activations as with INT8.
    INT8_WEIGHTS, INT4_WEIGHTS, INT4_WEIGHTS_ASYMMETRIC: weights in blocks of 32, activations in float; linears alone.
    """

    FLOAT32 = "float32"
    INT8 = "int8"
    INT8_SYMMETRIC = "int8_symmetric"
    INT8_WEIGHTS = "int8_weights"
    W4A8 = "w4a8"
    INT4_WEIGHTS = "int4_weights"
    INT4_WEIGHTS_ASYMMETRIC = "int4_weights_asymmetric"

    @property
    def is_static(self) -> bool:
        """Whether activations are on grids."""
        return self in (Precision.INT8, Precision.INT8_SYMMETRIC, Precision.W4A8)


@dataclass(frozen=True)
class PrecisionPlan:
    """The precision of each layer with a weight, by the name of its node in the canonical program.

    layers: precision by layer. sqnr: the SQNR of the outputs that was predicted, in dB. cost, float_cost: predicted for
        the plan and for float, in `unit`. notes: what is written beside a layer.
    """

    layers: Mapping[str, Precision]
    sqnr: float | None = None
    cost: float | None = None
    float_cost: float | None = None
    unit: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    def of(self, *wanted: Precision) -> tuple[str, ...]:
        """The layers that have one of these precisions, as patterns that match those nodes alone."""
        return tuple(f"%{name}" for name, precision in self.layers.items() if precision in wanted)

    def save(self, path: str | Path) -> Path:
        """Write the plan as YAML, whole or not at all."""
        target = Path(path)
        scratch = target.with_name(f".{target.name}.writing")
        scratch.write_text(self.text(target.name), encoding="utf-8")
        return scratch.replace(target)

    def text(self, name: str = "plan.yaml") -> str:
        """The plan as YAML."""
        lines = [_HEADER.format(name=name, precisions=", ".join(p.value for p in Precision))]
        for key, value in (("sqnr", self.sqnr), ("cost", self.cost), ("float_cost", self.float_cost)):
            if value is not None:
                lines.append(f"{key}: {value:.6g}\n")
        if self.unit:
            lines.append(f"unit: {self.unit}\n")
        lines.append("layers:\n" if self.layers else "layers: {}\n")
        width = max((len(layer) for layer in self.layers), default=0)
        for layer, precision in self.layers.items():
            note = self.notes.get(layer, "")
            text = f"  {layer}: {precision.value}".ljust(width + 28)
            lines.append(f"{text}# {note}\n" if note else f"{text.rstrip()}\n")
        return "".join(lines)

    @classmethod
    def load(cls, path: str | Path) -> PrecisionPlan:
        """Read a plan. Raises RecipeError naming the file and the entry that is wrong."""
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is malformed", found=" ".join(str(error).split())) from error
        if not isinstance(data, dict) or not isinstance(data.get("layers"), dict):
            raise RecipeError(f"{path} is not a plan", expected="a mapping of precisions under `layers`")
        layers = {str(layer): _precision(value, f"{path}, {layer}") for layer, value in data["layers"].items()}
        numbers = {key: _number(data.get(key), f"{path}, {key}") for key in ("sqnr", "cost", "float_cost")}
        return cls(layers, numbers["sqnr"], numbers["cost"], numbers["float_cost"], str(data.get("unit", "")))

    def __str__(self) -> str:
        counts = Counter(precision.value for precision in self.layers.values())
        return ", ".join(f"{count} {name}" for name, count in counts.items())


def _precision(value: Any, where: str) -> Precision:
    known = [precision.value for precision in Precision]
    if value not in known:
        raise RecipeError(f"{where}: no such precision", expected=", ".join(known), found=repr(value))
    return Precision(value)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"{where}: not a number", found=repr(value))
    return float(value)
