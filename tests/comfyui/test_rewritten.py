"""The real converter of ComfyUI-GGUF writes a guarded file anew, and `verify --base` finds it guarded."""

import subprocess
import sys

import pytest

import safeflux
from tests.comfyui.conftest import find_gguf_pack
from tests.helpers.policies import BOTH

pytestmark = pytest.mark.comfyui


@pytest.mark.parametrize("kind", ["guarded", "plain"])
def test_a_file_of_the_converter_is_judged_by_what_it_was_made_of(bfl, store, tmp_path, kind):
    script = find_gguf_pack() / "tools" / "convert.py"
    source = bfl
    if kind == "guarded":
        source = tmp_path / "guarded.safetensors"
        safeflux.bake(bfl, source, BOTH, store=store)
    target = tmp_path / "converted.gguf"
    command = [sys.executable, str(script), "--src", str(source), "--dst", str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    state = safeflux.verify_files(target, BOTH, store=store, base=bfl).status.state
    assert state is (safeflux.State.GUARDED if kind == "guarded" else safeflux.State.UNGUARDED)
