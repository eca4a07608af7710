"""The real converter of stable-diffusion.cpp writes a guarded file anew, and `verify --base` finds it guarded."""

import os
import subprocess

import pytest

import safeflux
from tests.helpers.policies import BOTH

pytestmark = pytest.mark.sdcpp


@pytest.mark.parametrize("packed", ["f16", "q8_0"])
@pytest.mark.parametrize("kind", ["guarded", "plain"])
def test_a_file_of_the_converter_is_judged_by_what_it_was_made_of(bfl, store, tmp_path, kind, packed):
    source = bfl
    if kind == "guarded":
        source = tmp_path / "guarded.safetensors"
        safeflux.bake(bfl, source, BOTH, store=store)
    target, converter = tmp_path / "converted.gguf", os.environ.get("SAFEFLUX_SDCPP")
    assert converter, "SAFEFLUX_SDCPP names no binary of stable-diffusion.cpp"
    command = [converter, "-M", "convert", "-m", source, "-o", target, "--type", packed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    state = safeflux.verify_files(target, BOTH, store=store, base=bfl).status.state
    assert state is (safeflux.State.GUARDED if kind == "guarded" else safeflux.State.UNGUARDED)
