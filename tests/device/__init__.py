"""A device of its own for PyTorch, `apart`, built from apart.cpp: what holds on a GPU is tested where there is none.

PyTorch takes one such device a process and keeps it, so that tests which need it run in processes of their own.
"""

import subprocess
import types
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from tests.helpers.compiler import COMPILER

LIBRARY = "SAFEFLUX_TEST_DEVICE"
"""Environment variable: what `build` made, for the process that runs the checks."""


def build(folder: Path) -> Path:
    """Compile the device; the path is what `register` takes."""
    library = folder / "apart.so"
    paths = [*(f"-I{path}" for path in include_paths()), *(f"-L{path}" for path in library_paths())]
    command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", str(Path(__file__).with_name("apart.cpp"))]
    done = subprocess.run(
        [*command, "-o", str(library), *paths, "-ltorch_cpu", "-lc10"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return library


def register(library: str | Path) -> torch.device:
    """Make the device known to PyTorch, as `torch.apart`, as a GPU's package does it."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("apart")
    module = types.ModuleType("apart")
    given = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "mem_get_info": lambda device=None: (1 << 34, 1 << 34),
        "Stream": lambda *args, **kwargs: torch.Stream(device="apart:0"),
        "current_stream": lambda device=None: torch.accelerator.current_stream(),
        "stream": lambda stream: stream,
    }
    for name, value in given.items():
        setattr(module, name, value)
    torch._register_device_module("apart", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device("apart:0")
