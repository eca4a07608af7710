"""What of the node pack can be checked without the engine: its manifest, and the workflow that comes with it."""

import ast
import json
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import safeflux

PACK = Path(__file__).parents[2] / "comfyui"
WORKFLOW = json.loads((PACK / "example_workflows" / "flux-guarded.json").read_text(encoding="utf-8"))


def mappings() -> dict[str, dict[str, str]]:
    """The dictionaries that the pack hands to the engine, read without running it."""
    tree = ast.parse((PACK / "__init__.py").read_text(encoding="utf-8"))
    return {
        each.targets[0].id: {
            key.value: ast.unparse(value).strip("'")
            for key, value in zip(each.value.keys, each.value.values, strict=True)
        }
        for each in tree.body
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Dict)
    }


def test_the_manifest_is_what_a_registry_reads():
    content = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = content["project"], content["tool"]["comfy"]
    assert project["name"] == "comfyui-safeflux"
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= comfy.keys()
    assert comfy["PublisherId"] == ""  # an account's id, which whoever publishes fills in
    needs = [Requirement(line) for line in project["dependencies"]]
    assert [need.name for need in needs] == ["safeflux"]
    assert needs[0].specifier.contains(safeflux.__version__)
    assert (PACK / "requirements.txt").read_text(encoding="utf-8").split() == project["dependencies"]


def test_each_node_has_a_name_for_people_and_is_explained():
    found = mappings()
    assert found["NODE_CLASS_MAPPINGS"].keys() == found["NODE_DISPLAY_NAME_MAPPINGS"].keys()
    pages = [
        (PACK / "README.md").read_text(encoding="utf-8"),
        (PACK.parent / "docs/comfyui.md").read_text(encoding="utf-8"),
    ]
    for name in found["NODE_DISPLAY_NAME_MAPPINGS"].values():
        assert all(f"`{name}`" in page for page in pages), name


def test_the_links_of_the_workflow_fit_and_the_sampler_draws_with_the_verified_model():
    nodes = {node["id"]: node for node in WORKFLOW["nodes"]}
    for number, source, slot, target, inlet, kind in WORKFLOW["links"]:
        out, into = nodes[source]["outputs"][slot], nodes[target]["inputs"][inlet]
        assert (out["type"], into["type"], into["link"]) == (kind, kind, number)
        assert number in out["links"]
    assert mappings()["NODE_CLASS_MAPPINGS"].keys() <= {node["type"] for node in nodes.values()}
    models = {nodes[b]["type"]: nodes[a]["type"] for _, a, _, b, _, kind in WORKFLOW["links"] if kind == "MODEL"}
    assert models == {
        "SafeFluxGuard": "UNETLoader",
        "SafeFluxVerify": "SafeFluxGuard",
        "SafeFluxReceipt": "SafeFluxVerify",
        "KSampler": "SafeFluxVerify",
    }
    guard = next(node for node in nodes.values() if node["type"] == "SafeFluxGuard")
    assert guard["widgets_values"][0] in safeflux.bundled_policies()
