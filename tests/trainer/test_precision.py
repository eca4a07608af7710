"""Which float type matrix products run in: what the device does faster, unless it is said."""

import os
import subprocess
import sys

import pytest
import torch
from safeflux.trainer.sampling.precision import compute_dtype, fast_math

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_what_is_said_is_taken(name):
    assert compute_dtype(name, CPU) is getattr(torch, name)


def test_the_measurement_is_made_once_a_process():
    assert compute_dtype("auto", CPU) is compute_dtype("auto", CPU)
    assert compute_dtype("auto", CPU) in (torch.bfloat16, torch.float32)


def test_without_bf16_units_products_run_in_float32():
    """A limit on oneDNN's instructions takes the units away from any x86 processor."""
    code = (
        "import torch; from safeflux.trainer.sampling.precision import compute_dtype; "
        "print(compute_dtype('auto', torch.device('cpu')))"
    )
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **limits}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch.float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_run_in_the_dtype(dtype):
    layer, x = torch.nn.Linear(8, 8), torch.ones(2, 8)
    with fast_math(CPU, dtype):
        assert layer(x).dtype is dtype
