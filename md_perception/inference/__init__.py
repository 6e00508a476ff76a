"""The exported student: its manifest and the ONNX Runtime session that runs it."""
