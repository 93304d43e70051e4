"""Emission of ONNX: what every target that reads ONNX shares."""
