"""`safeflux mask publish`: a folder as the hub takes it, whose masks are found from the hub as they were."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard

from safeflux.cli import main
from safeflux.masks.file import save_masks
from safeflux.reference import NAME
from tests.helpers.hub import COMMIT, serve_hub
from tests.test_catalogue import MASKS

POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: own\ncategories:\n  weapons: {masks: [published]}\n"


@pytest.fixture
def publish(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["mask", "publish"]
    return lambda *more: CliRunner().invoke(main, [*arguments, *map(str, more)], catch_exceptions=False)


def test_what_is_laid_out_is_found_from_the_hub(publish, tmp_path):
    mask = tmp_path / "published.safetensors"
    mask.write_bytes((MASKS / "weapons.safetensors").read_bytes())
    mask.with_name(f"{mask.name}.sig").write_text("{}")
    done = publish(mask, "out", "--repo", "org/masks", "--json")
    assert done.exit_code == 0, done.output
    files = {path: (tmp_path / "out" / path).read_bytes() for path in json.loads(done.stdout)["files"]}
    names = ("README.md", *(f"{NAME}/published.{suffix}" for suffix in ("md", "safetensors", "safetensors.sig")))
    assert sorted(files) == sorted(names)
    assert files[f"{NAME}/published.safetensors"] == mask.read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "safeflux"
    assert card.data.license == "apache-2.0"
    assert {"safeflux", "weapons"} <= set(card.data.tags)
    assert card.data.base_model is None  # it has no id of the hub
    assert "| [published](emoji-flux/published.md) | weapons | emoji-flux | 98.5 % (95.7 to 99.5" in card.text

    (tmp_path / "own.yaml").write_text(POLICY)
    command = ["policy", "plan", "own.yaml", NAME, "--store", f"hf://org/masks@{COMMIT}", "--json"]
    with serve_hub({"org/masks": files}) as (endpoint, _):
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
        planned = subprocess.run(
            [sys.executable, "-m", "safeflux", *command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
    assert planned.returncode == 0, planned.stderr


def test_ids_of_the_hub_are_linked_and_mixed_licences_are_other(publish, make_masks, make_meta, tmp_path):
    one = make_meta(base_model="org/flux", licence="MIT")
    save_masks(tmp_path / "one.safetensors", make_masks(1), one)
    save_masks(tmp_path / "two.safetensors", make_masks(2), make_meta(base_model="org/flux", licence="Apache-2.0"))
    assert publish("one.safetensors", "two.safetensors", "out", "--repo", "org/masks").exit_code == 0
    head = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert head["base_model"] == ["org/flux"]
    assert head["license"] == "other"
    assert (tmp_path / "out/org--flux/two.safetensors").is_file()


def test_mistakes_leave_nothing_behind(publish, make_masks, make_meta, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_masks(tmp_path / folder / "one.safetensors", make_masks(1), make_meta())
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("")
    cases = {
        ("a/one.safetensors", "b/one.safetensors", "out", "--repo", "org/masks"): "another file would be",
        ("a/one.safetensors", "out", "--repo", "masks"): "expected ORG/NAME",
        ("a/one.safetensors", "full", "--repo", "org/masks"): "full: already exists; choose another name",
        ("a/one.safetensors", "nowhere/out", "--repo", "org/masks"): "the folder nowhere does not exist",
    }
    for words, message in cases.items():
        done = publish(*words)
        assert done.exit_code == 1
        assert message in done.stderr
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["kept.txt"]


def test_a_disk_that_fails_in_the_middle_leaves_nothing_behind(tmp_path, publish):
    """A limit on the size of files stops the second of two masks, as a full disk would."""
    limit = (MASKS / "weapons.safetensors").stat().st_size - 1
    program = (
        "import resource, signal, sys; from safeflux.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); main(sys.argv[1:])"
    )
    words = ["mask", "publish", "character", "weapons", "out", "--repo", "org/masks"]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "error: out: cannot be written (File too large); nothing was left behind.\n"
    assert list(tmp_path.iterdir()) == []
    assert publish(*words[2:]).exit_code == 0
