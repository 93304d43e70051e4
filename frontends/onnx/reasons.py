"""Why operators that people meet have no import rule."""

from __future__ import annotations

_STRINGS = "torch has no tensors of strings"
_VISION = "PyTorch has it in torchvision alone"
_TREES = "trees and support vectors are not made of tensor operators"
_LAYOUT = "the file was optimized for one processor: save it at ORT_ENABLE_EXTENDED, not ORT_ENABLE_ALL"

_STANDARD = {
    "DeformConv": _VISION,
    "ImageDecoder": "decode images before the model",
    "NonMaxSuppression": "how many boxes it keeps depends on data: cut the model before it",
    "RegexFullMatch": _STRINGS,
    "RoiAlign": _VISION,
    "StringConcat": _STRINGS,
    "StringNormalizer": _STRINGS,
    "StringSplit": _STRINGS,
    "TfIdfVectorizer": _STRINGS,
}
_LEARNING = {
    "CategoryMapper": _STRINGS,
    "LabelEncoder": _STRINGS,
    "SVMClassifier": _TREES,
    "SVMRegressor": _TREES,
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
}


def reason(domain: str, operator: str) -> str | None:
    """The reason, or None where there is none but that nobody wrote a rule yet."""
    if domain == "com.microsoft.nchwc":
        return _LAYOUT
    return {"": _STANDARD, "ai.onnx.ml": _LEARNING}.get(domain, {}).get(operator)
