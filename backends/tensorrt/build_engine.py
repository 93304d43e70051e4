"""Build a TensorRT engine from the ONNX file beside this script, as `build.json` asks.

Needs `tensorrt` and a GPU, or `tensorrt-rtx-cu13`, which builds for named compute capabilities without one. Nothing
else is imported, so the folder can be carried to another machine:

    pip install tensorrt-rtx-cu13
    python build_engine.py

tersor runs the same script in a process of its own: the builder writes to stderr past its logger, and a crash of native
code is then an error and not the end of the caller. What happened is written to `result.json`, and the exit code is 0
where there is an engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("tensorrt", "tensorrt_rtx")
"""By preference, where there is a GPU."""
INSTALL = "pip install tensorrt-rtx-cu13"
_NO_DRIVER = "cudaError 35"
"""What builders without a GPU complain of on the way, with every other complaint."""


def gpu_capability() -> str | None:
    """The compute capability of the first GPU as `8.6`, or None where the driver finds none."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError):
            driver = ctypes.CDLL(name)
            device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
            if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
                return None
            for attribute, value in ((75, major), (76, minor)):
                driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            return f"{major.value}.{minor.value}"
    return None


def find_package(wanted: str, gpu: bool) -> Any:
    """The module to build with: the one wanted, or by itself full TensorRT on a GPU, else TensorRT for RTX; or None."""
    for name in _candidates(wanted, gpu):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def is_installed(wanted: str, gpu: bool) -> bool:
    """Whether there is a module to build with, without loading it."""
    return any(importlib.util.find_spec(name) for name in _candidates(wanted, gpu))


def _candidates(wanted: str, gpu: bool) -> tuple[str, ...]:
    if wanted != "auto":
        return (wanted,)
    return PACKAGES if gpu else PACKAGES[1:]


def build(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build, write the engine beside the model, and say what happened."""
    gpu = gpu_capability()
    trt = find_package(request["package"], gpu is not None)
    if trt is None:
        return {"errors": [{"stage": "package", "message": f"no builder is installed; {INSTALL}"}]}
    messages: list[tuple[str, str]] = []
    result: dict[str, Any] = {"package": trt.__name__, "version": trt.__version__, "gpu": gpu, "errors": []}
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    network, errors = _network(trt, builder, logger, folder / request["model"])
    started = time.perf_counter()
    if not errors:
        plan, errors = _plan(trt, builder, network, request, folder, messages)
        result["seconds"] = time.perf_counter() - started
        if plan is not None:
            _write(folder / request["engine"], plan)
            result["capabilities"] = _capabilities(trt, request, gpu)
            result["layers"] = _inspect(trt, logger, plan) if gpu else None
    result["errors"] = errors
    result["warnings"] = [text for severity, text in messages if severity == "WARNING"]
    return result


def _logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # found at run time
        """Keeps what the builder says."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.append((severity.name, text))

    return Logger()


def _network(trt: Any, builder: Any, logger: Any, model: Path) -> tuple[Any, list[dict[str, str]]]:
    """The network of the ONNX file, strongly typed: precisions are those that the file states."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        return network, []
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return network, [
        {"stage": "parse", "node": e.node_name(), "operator": e.node_operator(), "message": _plain(e.desc())}
        for e in found
    ]


def _plan(
    trt: Any, builder: Any, network: Any, request: dict[str, Any], folder: Path, messages: list[tuple[str, str]]
) -> tuple[Any, list[dict[str, str]]]:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    if trt.__name__ == "tensorrt_rtx":
        config.num_compute_capabilities = len(request["capabilities"])
        for index, capability in enumerate(request["capabilities"]):
            name = f"SM{capability.replace('.', '')}"
            if name not in trt.ComputeCapability.__members__:
                return None, [{"stage": "config", "message": f"{trt.__name__} {trt.__version__} does not know {name}"}]
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if not _add_profiles(builder, config, request["profiles"]):
        return None, _complaints(messages, "profile")
    cache = _timing_cache(trt, config, request, folder)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return None, _complaints(messages, "build")
    if cache is not None:
        _write(cache, config.get_timing_cache().serialize())
    return plan, []


def _add_profiles(builder: Any, config: Any, profiles: list[dict[str, list[list[int]]]]) -> bool:
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            return False
    return True


def _timing_cache(trt: Any, config: Any, request: dict[str, Any], folder: Path) -> Path | None:
    """Let the builder reuse its measurements. TensorRT for RTX measures nothing while it builds, and has no cache."""
    if request["timing_cache"] is None or trt.__name__ == "tensorrt_rtx":
        return None
    path = folder / str(request["timing_cache"])
    config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)
    return path


def _capabilities(trt: Any, request: dict[str, Any], gpu: str | None) -> list[str]:
    """What the engine runs on: what was named, or the GPU that full TensorRT measured on."""
    named: list[str] = request["capabilities"]
    return named if trt.__name__ == "tensorrt_rtx" else [gpu or ""]


def _inspect(trt: Any, logger: Any, plan: Any) -> Any:
    """What the engine says of its own layers, which takes a GPU."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    return json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _complaints(messages: list[tuple[str, str]], stage: str) -> list[dict[str, str]]:
    errors = [text for severity, text in messages if severity in ("ERROR", "INTERNAL_ERROR")]
    telling = [text for text in errors if _NO_DRIVER not in text] or errors or ["the builder did not say why"]
    return [{"stage": stage, "message": _plain(text)} for text in telling]


def _plain(text: str) -> str:
    """A message without the complaints about a missing driver, which every builder without a GPU adds."""
    return "\n".join(line for line in text.splitlines() if _NO_DRIVER not in line) or text


def _write(path: Path, content: Any) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(content)
    draft.replace(path)


def main() -> int:
    """Read `build.json`, build, write `result.json`."""
    folder = Path(__file__).resolve().parent if len(sys.argv) < 2 else Path(sys.argv[1])
    result = build(json.loads((folder / "build.json").read_text()), folder)
    _write(folder / "result.json", json.dumps(result, indent=1).encode())
    for error in result["errors"]:
        where = f" at {error['node']} ({error['operator']})" if error.get("node") else ""
        sys.stdout.write(f"{error['stage']}{where}: {error['message']}\n")
    if not result["errors"]:
        sys.stdout.write(f"built for {', '.join(result['capabilities'])} in {result['seconds']:.1f} s\n")
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
