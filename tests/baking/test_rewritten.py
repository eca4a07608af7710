"""Files that another tool wrote anew, as docs/files.md shows it. The real converter is in tests/comfyui."""

import re
import shlex
from pathlib import Path

from click.testing import CliRunner
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

from safeflux.cli import main
from tests.helpers.ggufs import write_gguf

PAGE = Path(__file__).parents[2] / "docs" / "files.md"
POLICY = """\
apiVersion: safeflux/v1
kind: Policy
name: mine
categories: {weapons: {masks: [blades]}, alcohol: {masks: [spirits]}}
"""


def run(line):
    return CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)


def test_the_example_of_the_page_prints_what_it_shows(bfl, store, tmp_path, monkeypatch):
    section = PAGE.read_text().partition("## Files that another tool rewrote")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    bake, convert, verify = (line.strip() for line in blocks[0].splitlines())
    monkeypatch.chdir(tmp_path)
    bfl.rename("flux1-dev.safetensors")
    store.rename("masks")
    Path("mine.yaml").write_text(POLICY)
    assert run(bake).exit_code == 0
    words = shlex.split(convert)
    source, target = (Path(words[words.index(option) + 1]) for option in ("--src", "--dst"))
    write_gguf(target, load_file(source), GGMLQuantizationType.F16)  # in the types that the converter chooses
    found = run(verify)
    assert (found.exit_code, found.stdout) == (0, "".join(line[4:] + "\n" for line in blocks[1].splitlines()))
    assert "name the base model (--base)" in str(CliRunner().invoke(main, verify.split()[1:-2]).output)
    target.unlink()
    write_gguf(target, load_file("flux1-dev.safetensors"), GGMLQuantizationType.F16)
    plain = run(verify)
    assert plain.exit_code == 1
    assert "10 of 10 masked places are not zero" in plain.stdout
