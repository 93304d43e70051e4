"""`python -m benchmarks [NAME ...] [--quick]`: run all or the named ones."""

from __future__ import annotations

import argparse
import importlib

from .results import publish

NAMES = (
    "hls",
    "neon_kernels",
    "integer_differences",
    "neon_models",
    "onnx_float_speed",
    "onnx_import",
    "pass_time",
    "pruning_accuracy",
    "pruning_latency",
    "pruning_time",
    "quantization",
    "resnet50_int8",
    "tensorrt_engines",
    "training_distillation",
    "training_pruning",
    "training_quantization",
    "training_transformers",
)


def main() -> None:
    """Parse the command line, run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes no results")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; there are {', '.join(NAMES)}")
    for name in options.names or NAMES:
        rows = importlib.import_module(f"{__package__}.{name}").run(options.quick)
        publish(name, rows, options.quick)


if __name__ == "__main__":
    main()
