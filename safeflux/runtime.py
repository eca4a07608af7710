"""ONNX Runtime, on the best that it finds here: the GPU where onnxruntime-gpu is installed, else the CPU."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime


def providers() -> list[str]:
    """Name what ONNX Runtime can run on here, best first."""
    known = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in known if name in onnxruntime.get_available_providers()]


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Load a model, without ONNX Runtime's notes on what it could not place; its errors go through."""
    options, wanted = onnxruntime.SessionOptions(), providers()
    options.log_severity_level = 3
    if "CUDAExecutionProvider" in wanted:
        with redirect_stdout(sys.stderr):  # it prints what it misses
            onnxruntime.preload_dlls()  # CUDA as pip installs it; without, only who imports torch first gets the GPU
    return onnxruntime.InferenceSession(path, options, providers=wanted)
