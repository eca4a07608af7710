"""Commands that look at a model take any that can be opened, an ONNX model too."""

import json

import torch
from click.testing import CliRunner

from safeflux.checkpoints.source import open_source
from safeflux.cli import main
from safeflux.masks.file import load_masks

POLICY = "apiVersion: safeflux/v1\nkind: Policy\nname: blades\ncategories: {weapons: {masks: [blades]}}\n"


def test_a_policy_is_planned_on_an_onnx_model(plain, masks, tmp_path):
    (tmp_path / "blades.yaml").write_text(POLICY)
    asked = ["policy", "plan", str(tmp_path / "blades.yaml"), str(plain), "--store", str(masks), "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert open_source(plain).fingerprint in done.stdout


def test_scores_are_imported_for_an_onnx_model(plain, tmp_path):
    sites = [site for site in open_source(plain).sites.values() if site.kind == "norm"]
    scores = [torch.where(torch.arange(site.num_bits) == 3, -1.0, 1.0) for site in sites]
    torch.save(scores, tmp_path / "norm.pt")
    out = tmp_path / "mask.safetensors"
    about = ["--category", "weapons", "--concept", "pistol", "--licence", "Apache-2.0", "--json"]
    done = CliRunner().invoke(
        main, ["mask", "import", str(tmp_path / "norm.pt"), str(out), "--model", str(plain), *about]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(out)
    found, meta = load_masks(out)
    assert found.count.masked == len(sites)
    assert meta.fingerprint == open_source(plain).fingerprint
