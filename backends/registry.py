"""The targets by name."""

from __future__ import annotations

from tersor.ir.registry import Registry

from .base import Backend

TARGETS: Registry[Backend] = Registry(
    "target",
    Backend,  # type: ignore[type-abstract]  # looked up, never instantiated
    {
        "hls": "tersor.backends.hls.backend:Hls",
        "neon": "tersor.backends.neon.backend:Neon",
        "onnxruntime": "tersor.backends.onnxruntime.backend:OnnxRuntime",
        "tensorrt": "tersor.backends.tensorrt.backend:TensorRT",
    },
    "tersor.backends",
)
