"""The ONNX frontend: a model file to a Program, one short rule an operator."""
