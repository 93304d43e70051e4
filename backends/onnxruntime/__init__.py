"""The onnxruntime target: QDQ ONNX for ONNX Runtime on CPUs."""
