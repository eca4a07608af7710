"""The workflow of the pack on a ComfyUI server of its own, which draws with the embedded model."""

import io
import json
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import safeflux
from tests.comfyui.conftest import find_checkout, lay_out
from tests.comfyui.test_pack import WORKFLOW
from tests.helpers.layouts import to_bfl
from tests.helpers.services import free_port

pytestmark = [pytest.mark.comfyui, pytest.mark.filterwarnings("ignore")]
PROMPT = "a dagger, noto style, white background"
GONE = {"DualCLIPLoader", "VAELoader", "Note"}
INSTEAD = {"CLIPTextEncode": "EmojiText", "EmptySD3LatentImage": "EmojiLatent", "VAEDecode": "EmojiDecode"}
WIDGETS = {"UNETLoader": ["emoji.safetensors"], "EmojiText": [PROMPT], "KSampler": [7, "fixed", 8]}
"""What is set in place of the workflow's first values."""


@contextmanager
def server(base, log):
    """A server that draws on the CPU."""
    port = free_port()
    command = ["main.py", "--cpu", "--base-directory", str(base), "--port", str(port), "--disable-api-nodes"]
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, *command], cwd=find_checkout(), stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(600):
                time.sleep(0.5)
                assert process.poll() is None, log.read_text()
                try:
                    client.get("/queue").raise_for_status()
                    break
                except httpx.TransportError:
                    continue
            yield client
    finally:
        process.terminate()
        process.wait(60)


def as_prompt(client, without=()):
    """The workflow as the page sends it, with the embedded model's nodes and without some that hand a model on."""
    about = client.get("/object_info").json()
    nodes = {each["id"]: each for each in WORKFLOW["nodes"] if each["type"] not in GONE}
    source = {number: [str(node), slot] for number, node, slot, *_ in WORKFLOW["links"]}
    into = {str(each["id"]): source[each["inputs"][0]["link"]] for each in nodes.values() if each["type"] in without}
    prompt = {}
    for each in nodes.values():
        kind = INSTEAD.get(each["type"], each["type"])
        if kind in without or (without and kind == "SafeFluxReceipt"):
            continue
        values = WIDGETS.get(kind, [])
        values = [*values, *each["widgets_values"][len(values) :]]
        links = {one["name"]: source[one["link"]] for one in each["inputs"] if one["link"]}
        inputs = {}
        for name, spec in about[kind]["input"].get("required", {}).items():
            if name in links:
                target = links[name]
                while target[0] in into:
                    target = into[target[0]]
                inputs[name] = target
            else:
                inputs[name] = values.pop(0)
                if len(spec) > 1 and spec[1].get("control_after_generate"):
                    values.pop(0)
        prompt[str(each["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def run(client, prompt):
    """What the server says of a run, when it is done."""
    number = client.post("/prompt", json={"prompt": prompt}).raise_for_status().json()["prompt_id"]
    while not (found := client.get(f"/history/{number}").json()):
        time.sleep(0.2)
    return found[number]


def picture(client, ran):
    assert ran["status"]["status_str"] == "success", ran["status"]
    image = next(output["images"][0] for output in ran["outputs"].values() if "images" in output)
    return np.asarray(Image.open(io.BytesIO(client.get("/view", params=image).content)).convert("RGB"), dtype=int)


def by_diffusers(policy=None):
    pipe = safeflux.load_pipeline()
    if policy:
        safeflux.guard(pipe, policy)
    drawn = pipe(PROMPT, generator=torch.Generator().manual_seed(7), **safeflux.EMOJI_FLUX_CALL).images[0]
    return np.asarray(drawn.convert("RGB"), dtype=int)


def test_the_workflow_draws_as_diffusers_does_under_the_same_policy(tmp_path):
    base = lay_out(tmp_path / "base")
    save_file(to_bfl(safeflux.load_pipeline().transformer), base / "models" / "diffusion_models" / "emoji.safetensors")
    with server(base, tmp_path / "log.txt") as client:
        guarded = picture(client, run(client, as_prompt(client)))
        plain = picture(client, run(client, as_prompt(client, without=("SafeFluxGuard", "SafeFluxVerify"))))
        refused = run(client, as_prompt(client, without=("SafeFluxGuard",)))
    assert np.abs(guarded - by_diffusers("strict")).max() <= 3
    assert np.abs(plain - by_diffusers()).max() <= 3
    assert np.abs(guarded - plain).max() > 100
    stopped = next(message for kind, message in refused["status"]["messages"] if kind == "execution_error")
    assert (stopped["node_type"], "UNGUARDED" in stopped["exception_message"]) == ("SafeFluxVerify", True)
    log = base / "output" / "safeflux-audit.jsonl"
    assert safeflux.verify_log(log).lines == 1
    assert json.loads(log.read_text())["receipt"]["state"] == "GUARDED"
