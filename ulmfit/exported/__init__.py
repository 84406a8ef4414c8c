"""Classifiers as ONNX graphs: written by `ulmfit export --to onnx`, read by ONNX Runtime without torch."""
