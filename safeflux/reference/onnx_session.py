"""ONNX Runtime, on the best device that it finds: the GPU where onnxruntime-gpu is installed, else the CPU.

safeflux depends on neither of its two distributions, which write the same files; an extra chooses one. So it is
imported only when a session is opened, and everything but judging pictures works without it.
"""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from safeflux.errors import ConfigError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INSTALL = "pip install 'safeflux[cpu]', or on a machine with an NVIDIA GPU: pip install 'safeflux[gpu]'"
"""How to get ONNX Runtime."""
_NAMED = ("onnxruntime*.dist-info", "ort_nightly*.dist-info")
"""How the distributions that bring it are named, as pip writes names: to ask every distribution takes a second."""


def runtimes() -> dict[str, str]:
    """The installed distributions that bring ONNX Runtime, with their versions; more than one damage each other."""
    paths = [path for folder in sys.path for name in _NAMED for path in Path(folder).glob(name)]
    found = {one.name: one.version for one in map(Distribution.at, reversed(paths)) if "onnxruntime" in _packages(one)}
    return dict(sorted(found.items()))


def repair() -> str:
    """How to get a working ONNX Runtime where several have overwritten each other."""
    return f"pip uninstall {' '.join(runtimes()) or 'onnxruntime'}, then install one: {INSTALL}"


def providers() -> list[str]:
    """Name the execution providers that can be used here, best first.

    Raises:
        ConfigError: ONNX Runtime is not installed, or is damaged.
    """
    return _usable(_runtime())


def open_session(path: Path) -> "InferenceSession":
    """Load a model, without ONNX Runtime's notes on operators that it could not place; its errors go through.

    Raises:
        ConfigError: ONNX Runtime is not installed, or is damaged.
    """
    onnxruntime = _runtime()
    options, wanted = onnxruntime.SessionOptions(), _usable(onnxruntime)
    options.log_severity_level = 3
    if "CUDAExecutionProvider" in wanted:
        with redirect_stdout(sys.stderr):  # it prints the libraries that it misses
            onnxruntime.preload_dlls()  # CUDA as pip installs it; else the GPU is found only once torch is imported
    session: InferenceSession = onnxruntime.InferenceSession(path, options, providers=wanted)
    return session


def _packages(distribution: Distribution) -> set[str]:
    """What a distribution can be imported by, as it says, or by its files."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    return set(declared or (path.parts[0] for path in distribution.files or ()))


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise ConfigError(f"ONNX Runtime cannot be imported ({error}); {repair()}") from error
        raise ConfigError(f"judging pictures needs ONNX Runtime, which is not installed; {INSTALL}") from error
    except ImportError as error:
        raise ConfigError(f"ONNX Runtime cannot be imported ({error}); {repair()}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder is left when one of two distributions goes
        raise ConfigError(f"ONNX Runtime is damaged: its files are missing; {repair()}")
    module: ModuleType = onnxruntime
    return module


def _usable(onnxruntime: ModuleType) -> list[str]:
    available: Sequence[str] = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
