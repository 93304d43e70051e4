"""`python -m benchmarks [NAME ...] [--quick]`: run all or the named ones.

`claims 3 8` measures the third and the eighth of the claims, `claims` all nine.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from .claims.ledger import LedgerError
from .claims.run import NUMBERS, page
from .claims.run import run as run_claims
from .results import publish

NAMES = (
    "hls",
    "neon_costs",
    "neon_kernels",
    "integer_differences",
    "neon_models",
    "onnx_float_speed",
    "onnx_import",
    "pass_time",
    "per_channel",
    "pruning_accuracy",
    "pruning_latency",
    "pruning_time",
    "quantization",
    "quantization_encoder",
    "resnet50_int8",
    "tensorrt_engines",
    "training_data_free",
    "training_distillation",
    "training_pruning",
    "training_quantization",
    "training_transformers",
    "claims",
)


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes no results")
    parser.add_argument("--fresh", action="store_true", help="claims: begin anew where a run was stopped")
    parser.add_argument("--page", action="store_true", help="claims: only write the figures into docs/claims.md")
    options = parser.parse_args()
    try:
        names, numbers = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    try:
        if options.page:
            page()
            return
        for name in names:
            _run(name, numbers, options)
    except LedgerError as error:
        parser.exit(1, f"{error}\n")


def _run(name: str, numbers: Sequence[int], options: argparse.Namespace) -> None:
    if name == "claims":
        run_claims(numbers, options.quick, options.fresh)
        return
    rows = importlib.import_module(f"{__package__}.{name}").run(options.quick)
    publish(name, rows, options.quick)


def chosen(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Benchmarks and the numbers of claims: `claims 3 8` and `claims.3 claims.8` are the same.

    Raises ValueError on a word that is neither.
    """
    names: list[str] = []
    numbers: list[int] = []
    for word in words:
        name, _, number = ("claims", "", word) if word.isdigit() and "claims" in names else word.partition(".")
        if name not in NAMES or (number and name != "claims"):
            raise ValueError(f"no benchmark {word!r}; there are {', '.join(NAMES)}")
        if number and number not in map(str, NUMBERS):
            raise ValueError(f"no claim {number!r}; there are 1 to {NUMBERS[-1]}")
        names += [name] if name not in names else []
        numbers += [int(number)] if number else []
    return names or list(NAMES), numbers


if __name__ == "__main__":
    main()
