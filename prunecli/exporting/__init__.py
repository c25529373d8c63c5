"""Networks as ONNX files: conversion, half precision and sparse storage, and the check against PyTorch.

The packages behind it (onnx, onnxscript, onnxruntime) are imported when they are first needed.
"""

from prunecli.exporting.convert import OPSET, Form, to_onnx
from prunecli.exporting.describe import describe
from prunecli.exporting.verify import Difference, verify
from prunecli.exporting.write import write

__all__ = ["OPSET", "Difference", "Form", "describe", "to_onnx", "verify", "write"]
