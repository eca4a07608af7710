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


@pytest.mark.slow
@pytest.mark.skipif(not (HAS_COMPILER or torch.cuda.is_available()), reason="needs a C++ compiler, or a GPU")
@pytest.mark.parametrize("checks", sorted(path.name for path in CHECKS.glob("check_*.py")))
def test_checks_on_a_device(checks, environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=check_*.py"]
    done = subprocess.run([*command, CHECKS / checks], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
