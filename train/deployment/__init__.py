"""INT8, ONNX and submissions."""
