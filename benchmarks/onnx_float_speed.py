"""Float ONNX files in ONNX Runtime: as torch.onnx wrote them, and imported by tersor and written again.

A compiler that takes a file should not make it slower before it has begun. Each model of the six is exported by
torch.onnx and run on one thread beside what `lower(load_onnx(file))` gives, in turns, so that a machine that drifts is
fair to both. The figure is the least time of many runs, which other work on the machine disturbs least.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.onnxruntime.backend import OnnxRuntime

from .results import Row

GOAL = 1.02
Case = tuple[nn.Module, dict[str, Tensor]]


def _resnet(quick: bool) -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1]) if quick else ResNetConfig()
    return ResNetForImageClassification(config), _image(64 if quick else 224)


def _mobilenet(quick: bool) -> Case:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25 if quick else 1.0)
    return MobileNetV2ForImageClassification(config), _image(64 if quick else 224)


def _vit(quick: bool) -> Case:
    """ViT-base, four of its twelve layers."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_hidden_layers=1 if quick else 4)), _image(224)


def _bert(quick: bool) -> Case:
    """BERT-base, four of its twelve layers, on 128 tokens of which some are padding."""
    from transformers import BertConfig, BertModel

    mask = torch.ones(1, 128, dtype=torch.long)
    mask[:, 100:] = 0
    return BertModel(BertConfig(num_hidden_layers=1 if quick else 4)), {**_tokens(128), "attention_mask": mask}


_TEXT: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1376, "vocab_size": 1000}


def _llama(quick: bool) -> Case:
    """As Llama is built, of 512 channels and four layers, on 64 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_hidden_layers=1 if quick else 4, num_key_value_heads=2, **_TEXT)
    return LlamaForCausalLM(config), _tokens(64)


def _deepseek(quick: bool) -> Case:
    """As DeepSeek-V3 is built, of 512 channels and three layers, two with 8 experts, on 64 tokens.

    Experts as batched products, which is how torch.export takes them.
    """
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        num_hidden_layers=2 if quick else 3, num_key_value_heads=8, moe_intermediate_size=256, n_routed_experts=8,
        n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=128, kv_lora_rank=64,
        qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=64, **_TEXT,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    model.set_experts_implementation("batched_mm")
    return model, _tokens(64)


def _image(size: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, size, size)}


def _tokens(count: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 1000, (1, count))}


MODELS: dict[str, Callable[[bool], Case]] = {
    "ResNet-50": _resnet,
    "MobileNetV2": _mobilenet,
    "ViT": _vit,
    "BERT": _bert,
    "Llama": _llama,
    "DeepSeek-V3": _deepseek,
}


def run(quick: bool) -> list[Row]:
    """A row a model: milliseconds a run, and how much faster than the file as torch.onnx wrote it."""
    chosen = os.environ.get("TERSOR_BENCH_MODELS")
    names = [name for name in MODELS if chosen is None or name in chosen.split(",")]
    return [_row(name, quick) for name in names]


def _row(name: str, quick: bool) -> Row:
    torch.manual_seed(0)
    model, inputs = MODELS[name](quick)
    with tempfile.TemporaryDirectory() as folder:
        exported = _exported(model.eval(), inputs, Path(folder) / "exported.onnx")
        artifact = ts.lower(ts.load_onnx(exported), OnnxRuntime(audit=False), Path(folder) / "ours")
        files = (exported, artifact.path / "model.onnx")
        calls = [_call(file, inputs) for file in files]
        off = max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(calls[1](), calls[0](), strict=True))
        del calls
        peer, mine = _balanced(files, inputs, rounds=2 if quick else 6, seconds=1 if quick else 5)
    note = f"{mine / peer:.3f} of the file's time; outputs within {off:.0e}"
    return Row(name, mine * 1e3, "ms", peer * 1e3, "the file itself", peer / mine, f"at most {GOAL} of its time", note)


def _exported(model: nn.Module, inputs: dict[str, Tensor], path: Path) -> Path:
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (), path, kwargs=inputs, dynamo=True, verbose=False)
    return path


def _call(path: Path, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {given.name: inputs[given.name].numpy() for given in session.get_inputs()}
    return partial(session.run, None, feed)


def _balanced(files: tuple[Path, Path], inputs: dict[str, Tensor], rounds: int, seconds: float) -> tuple[float, float]:
    """The geometric mean over rounds of the least time of each file.

    A session that is opened first is a few percent faster than another of the same file, so each file is opened first
    in every second round.
    """
    logs: list[list[float]] = [[], []]
    for turn in range(rounds):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        times = _least([_call(files[place], inputs) for place in order], seconds)
        for place, least in zip(order, times, strict=True):
            logs[place].append(math.log(least))
    first, second = (math.exp(sum(values) / rounds) for values in logs)
    return first, second


def _least(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """The least time of each, called in turns, there and back."""
    least = [float("inf")] * len(calls)
    deadline, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < deadline or turn < 10:
        for index in sorted(range(len(calls)), reverse=bool(turn % 2)):
            started = time.perf_counter()
            calls[index]()
            least[index] = min(least[index], time.perf_counter() - started)
        turn += 1
    return least
