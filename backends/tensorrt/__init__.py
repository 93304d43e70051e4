"""The tensorrt target: QDQ ONNX placed by TensorRT's rules, and a serialized engine."""
