"""What holds on the CPU holds on another device: guards, offload with streams, training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.compiler import HAS_COMPILER
from tests.device import LIBRARY, build

CHECKS = Path(__file__).with_name("device")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("apart"))


@pytest.mark.slow
@pytest.mark.skipif(not (HAS_COMPILER or torch.cuda.is_available()), reason="needs a C++ compiler, or a GPU")
@pytest.mark.parametrize("checks", sorted(path.name for path in CHECKS.glob("check_*.py")))
def test_checks_on_a_device(checks, library):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "python_files=check_*.py",
            CHECKS / checks,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, LIBRARY: str(library)},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
