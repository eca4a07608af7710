"""What holds on the CPU holds on another device: guards, offload with streams, training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.device import LIBRARY, build
from tests.helpers.compiler import HAS_COMPILER

CHECKS = Path(__file__).with_name("device")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """That of the checks: where the device is that they use if there is no GPU."""
    if torch.cuda.is_available():
        return dict(os.environ)
    return {**os.environ, LIBRARY: str(build(tmp_path_factory.mktemp("apart")))}


@pytest.mark.thorough  # most of it is compilation; tests/model and tests/trainer check the same on the CPU
@pytest.mark.skipif(not (HAS_COMPILER or torch.cuda.is_available()), reason="needs a C++ compiler, or a GPU")
def test_checks_on_a_device(environment):
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    done = subprocess.run([*command, CHECKS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    for checks in CHECKS.glob("check_*.py"):
        assert f"PASSED tests/device/{checks.name}::" in done.stdout
