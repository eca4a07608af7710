"""The page "Your own FLUX", command by command, on a small model with random weights."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeflux.cli import main
from tests.helpers.runs import SETTINGS
from tests.helpers.tiny import save_tiny
from tests.helpers.zero_shot import save_clip

PAGE = (Path(__file__).parent.parent / "docs" / "own-flux.md").read_text(encoding="utf-8")
SMALLER = ["height=32", "width=32", "dtype=float32", "max_sequence_length=128", "saliency.rounds=2", *SETTINGS[:6]]
SMALLER += ["call.num_inference_steps=1", "call.max_sequence_length=64"]
SMALLER += ["saliency.bits_off=40", "saliency.warm_up=0", "saliency.last_rounds=0"]
"""What makes the page's run small enough: size, steps, numbers of prompts and rounds."""
SHORT = ["--call", "num_inference_steps=1", "--call", "max_sequence_length=64"]


@pytest.mark.slow
def test_every_command_of_the_page_works_in_its_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "my-flux", "flux2-klein-4b")
    save_clip(tmp_path / "my-clip")
    pack, words = re.findall(r"```(?:yaml|text)\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "words.csv").write_text(words)
    outputs = {}
    for line in re.findall(r"^    safeflux (.+)$", PAGE, re.MULTILINE):
        words_of_line = shlex.split(line.replace("512", "32"))
        if words_of_line[0] == "train":
            words_of_line += [part for setting in SMALLER for part in ("--set", setting)]
        if words_of_line[:2] == ["eval", "--model"]:
            words_of_line += ["--images", "2", "--kept", "4", *SHORT]
        if words_of_line[0] == "preview":
            words_of_line += ["--images", "2", *SHORT]
        result = CliRunner().invoke(main, words_of_line, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        outputs[" ".join(words_of_line[:2])] = result
        if words_of_line[:2] == ["pack", "new"]:
            (tmp_path / "vehicles.yaml").write_text(pack)
    assert "vehicles, 2 concepts, 3 words, 2 held out" in outputs["pack check"].stdout
    assert "zero-shot:my-clip, vehicles: finds " in outputs["train --model"].stderr
    assert "found " in outputs["train --model"].stderr
    assert "vehicles" in outputs["policy plan"].stdout
    assert (tmp_path / "guarded" / "model_index.json").is_file()
    assert "vehicles: found" in outputs["eval --model"].stdout
    assert "vehicles, on the base model: finds " in outputs["eval --model"].stdout
    assert "vehicles asked for" in outputs["preview --model"].stdout
    assert (tmp_path / "runs/preview/preview.html").is_file()
    assert "a car: found" in outputs["eval prompts"].stdout
    assert list((tmp_path / "runs/vehicles/pictures").iterdir())
