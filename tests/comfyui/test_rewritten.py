"""The real converter of ComfyUI-GGUF writes a guarded file anew, and `verify --base` finds it guarded."""

import subprocess
import sys
from pathlib import Path

import pytest

import safeflux
from tests.comfyui.conftest import find_checkout
from tests.helpers.policies import BOTH

pytestmark = pytest.mark.comfyui


@pytest.mark.parametrize("kind", ["guarded", "plain"])
def test_a_file_of_the_converter_is_judged_by_what_it_was_made_of(bfl, store, tmp_path, kind):
    script = Path(find_checkout(), "custom_nodes", "ComfyUI-GGUF", "tools", "convert.py")
    if not script.is_file():
        pytest.skip(f"{script} is missing: the converter is part of a node pack of its own")
    source = bfl
    if kind == "guarded":
        source = tmp_path / "guarded.safetensors"
        safeflux.bake(bfl, source, BOTH, store=store)
    target = tmp_path / "converted.gguf"
    command = [sys.executable, str(script), "--src", str(source), "--dst", str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    state = safeflux.verify_files(target, BOTH, store=store, base=bfl).status.state
    assert state is (safeflux.State.GUARDED if kind == "guarded" else safeflux.State.UNGUARDED)
