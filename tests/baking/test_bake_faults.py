"""Baking that is killed, runs out of disk, or is asked for what cannot be: nothing half-made, one clear error each."""

import contextlib
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from benchmarks.bake_kills import REFUSALS
from safeflux.baking.bake import bake, check_bake
from safeflux.baking.verify import verify_files
from safeflux.checkpoints.checkpoint import Checkpoint
from safeflux.cli import main
from safeflux.errors import BakeError, MaskMismatchError, ModelError, PolicyError
from safeflux.families.sites import find_sites
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet, keep_all
from safeflux.model.guard import guard
from safeflux.plan.lock import Lock
from safeflux.plan.status import State
from safeflux.policy.load import Action, Category, Policy
from tests.helpers.policies import BLADES, BOTH, SPIRITS

KILLED = """
import hashlib, os, sys
from pathlib import Path
from safeflux import bake, load_policy
source, target, policy, store = sys.argv[1:]
seen = set()
for n in range(1, 1000):
    child = os.fork()
    if not child:
        events = iter(range(1, 10**9))
        count = lambda *_: next(events) == n and os.kill(os.getpid(), 9)
        sys.addaudithook(lambda name, _: name.startswith(("open", "os.", "shutil.")) and count())
        bake(source, target, policy, store=store, overwrite=True, progress=count)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    seen.add(hashlib.sha256(Path(target).read_bytes()).hexdigest())
    if os.WIFEXITED(status):
        break
print(n, *sorted(seen), os.WEXITSTATUS(status))
"""


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(bfl, store, tmp_path):
    target, new = tmp_path / "guarded.safetensors", tmp_path / "new.safetensors"
    (tmp_path / "blades.yaml").write_text(POLICY)
    bake(bfl, new, tmp_path / "blades.yaml", store=store)
    bake(bfl, target, SPIRITS, store=store)
    allowed = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (target, new)}
    arguments = [str(bfl), str(target), str(tmp_path / "blades.yaml"), str(store)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=True)
    moments, *seen, status = done.stdout.split()
    assert int(moments) > 30, "killed at that many moments"
    assert set(seen) == allowed
    assert status == "0"
    assert {path.name for path in tmp_path.glob(".*")} == set(), "what the killed ones left is cleared away"


POLICY = """
apiVersion: safeflux/v1
kind: Policy
name: blades
categories: {weapons: {masks: [blades]}}
"""


def test_a_disk_that_fills_up_is_one_clear_error(bfl, store, tmp_path):
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from safeflux.cli import main; main(sys.argv[1:])"
    )
    (tmp_path / "blades.yaml").write_text(POLICY)
    target = tmp_path / "guarded.safetensors"
    arguments = ["bake", str(bfl), str(target), "--policy", str(tmp_path / "blades.yaml"), "--store", str(store)]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == f"error: {target}: cannot be written (File too large); nothing was left behind.\n"
    assert not list(tmp_path.glob("*guarded*")) + list(tmp_path.glob(".*"))


@pytest.fixture(params=["100k", "2m"])
def disk(request, tmp_path):
    """A small disk of its own: too small from the start, and one that has room as long as nobody else writes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", place]
    if subprocess.run(command, capture_output=True).returncode:  # for root alone; the test above needs no disk
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_without_room_is_told_before_or_while_it_is_written(bfl, store, disk):
    other = disk / "other"

    def fill(*_):
        if not other.exists():
            with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    with pytest.raises(
        BakeError, match=r"0\.\d\d GB are needed and 0\.00 GB are free|No space left on device\); nothing"
    ):
        bake(bfl, disk / "guarded.safetensors", BLADES, store=store, progress=fill)
    assert [path.name for path in disk.iterdir()] == [other.name] * other.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("flux.safetensors", "is the source itself"),
        ("there.safetensors", rf"{REFUSALS[2]}; overwrite it \(--overwrite\)"),
        ("guarded.bin", r"expected a name that ends in \.safetensors"),
        ("nowhere/guarded.safetensors", "the folder .*nowhere does not exist"),
    ],
)
def test_a_target_that_cannot_be_is_refused_and_nothing_is_touched(bfl, store, target, message):
    (bfl.parent / "there.safetensors").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in bfl.parent.glob("*.*")}
    with pytest.raises(BakeError, match=message):
        bake(bfl, bfl.parent / target, BLADES, store=store)
    assert {path: path.read_bytes() for path in bfl.parent.glob("*.*")} == before


def test_a_folder_is_not_written_into_itself_nor_onto_another(base_transformer, store, tmp_path):
    folder = tmp_path / "model"
    base_transformer.save_pretrained(folder)
    for target, message in ((folder / "inside", "is inside the source"), (folder.parent / "store", "already exists")):
        with pytest.raises(BakeError, match=message):
            bake(folder, target, BLADES, store=store, overwrite=True)


def test_a_source_that_is_guarded_already_is_refused(bfl, transformer, store, tmp_path):
    bake(bfl, tmp_path / "once.safetensors", BLADES, store=store)
    with pytest.raises(ModelError, match=r"once\.safetensors: is already guarded.*Bake from the base model"):
        bake(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", SPIRITS, store=store)
    guard(transformer, BOTH, store=store)
    transformer.save_pretrained(tmp_path / "saved")
    with pytest.raises(MaskMismatchError, match="masks written by other means"):
        bake(tmp_path / "saved", tmp_path / "again", BLADES, store=store)
    assert not (tmp_path / "twice.safetensors").exists()
    assert not (tmp_path / "again").exists()


def damaged(path, change):
    """Change a file's header, as JSON, and leave the rest."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def overlap(header):
    first, second = sorted(header, key=lambda name: header[name].get("data_offsets", [0])[0])[1:3]
    header[second]["data_offsets"] = header[first]["data_offsets"]


SHARDS = {
    "truncated shard": lambda home: (home / "a.safetensors").write_bytes((home / "a.safetensors").read_bytes()[:-9]),
    "missing shard": lambda home: (home / "a.safetensors").unlink(),
    "overlapping offsets": lambda home: damaged(home / "a.safetensors", overlap),
    "trailing bytes": lambda home: (home / "a.safetensors").write_bytes(
        (home / "a.safetensors").read_bytes() + b"more"
    ),
    "exchanged shards": lambda home: (home / "a.safetensors").write_bytes((home / "b.safetensors").read_bytes()),
}


@pytest.mark.parametrize("damage", SHARDS.values(), ids=SHARDS.keys())
def test_damaged_shards_are_one_clear_error_and_nothing_is_written(base_transformer, store, tmp_path, damage):
    home, state = tmp_path / "model", base_transformer.state_dict()
    home.mkdir()
    places = {name: f"{'ab'[n % 2]}.safetensors" for n, name in enumerate(state)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file({name: state[name] for name in state if places[name] == file}, home / file, {"format": "pt"})
    (home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    bake(home, tmp_path / "good", BLADES, store=store)
    damage(home)
    with pytest.raises(ModelError, match=r"a\.safetensors(: (cannot be read|its tensors differ)|, which is missing)"):
        bake(home, tmp_path / "guarded", BLADES, store=store)
    assert not [path for path in tmp_path.iterdir() if "guarded" in path.name]


def test_weights_that_a_quantiser_packed_are_refused(bfl, store, tmp_path):
    tensors = load_file(bfl)
    tensors["double_blocks.0.img_mlp.0.weight"] = tensors["double_blocks.0.img_mlp.0.weight"].to(torch.int8)
    save_file(tensors, bfl)
    with pytest.raises(ModelError, match=r"img_mlp\.0\.weight': expected float weights, got I8: packed by a quantiser"):
        bake(bfl, tmp_path / "guarded.safetensors", SPIRITS, store=store)


def test_a_tensor_that_no_flux_has_is_refused(bfl, store, tmp_path):
    save_file(load_file(bfl) | {"double_blocks.0.extra.weight": torch.ones(2, 2)}, bfl)
    with pytest.raises(ModelError, match=r"'double_blocks\.0\.extra\.weight' is none that a flux1 model has"):
        bake(bfl, tmp_path / "guarded.safetensors", SPIRITS, store=store)


@pytest.mark.parametrize("number", ["999999999999", "²"])
def test_a_strange_block_number_is_one_clear_error_at_once(bfl, store, tmp_path, number):
    save_file(load_file(bfl) | {f"double_blocks.{number}.extra.weight": torch.ones(2, 2)}, bfl)
    with pytest.raises(ModelError, match=r"without a gap, got|is none that a flux1 model has"):
        bake(bfl, tmp_path / "guarded.safetensors", SPIRITS, store=store)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "does not exist"), ("flux.onnx", "cannot be read as an ONNX model")],
)
def test_what_is_no_source_is_told_with_the_way_out(store, tmp_path, name, message):
    (tmp_path / "flux.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError, match=rf"{name}: .*{message}"):
        bake(tmp_path / name, tmp_path / "guarded.safetensors", BLADES, store=store)


def test_a_damaged_base_model_is_named(bfl, store, tmp_path):
    (tmp_path / "flux.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError, match=r"flux\.onnx: cannot be read as an ONNX model"):
        verify_files(bfl, BLADES, store=store, base=tmp_path / "flux.onnx")


def test_a_lock_holds_and_a_policy_that_enforces_nothing_is_refused(bfl, store, tmp_path):
    warn = Policy(name="warn", categories={"weapons": Category(action=Action.WARN, masks=("blades",))})
    with pytest.raises(PolicyError, match="enforces no category"):
        bake(bfl, tmp_path / "guarded.safetensors", warn, store=store)
    made = bake(bfl, tmp_path / "guarded.safetensors", BLADES, store=store)
    Lock.of(made.plan).write(tmp_path / "lock.json")
    with pytest.raises(PolicyError, match="this differs from the lock"):
        bake(bfl, tmp_path / "other.safetensors", SPIRITS, store=store, lock=tmp_path / "lock.json")


def test_two_at_once_do_not_mix(bfl, store, tmp_path):
    target = tmp_path / "guarded.safetensors"

    def again(*_):
        with pytest.raises(BakeError, match=REFUSALS[0]):
            bake(bfl, target, BLADES, store=store)

    bake(bfl, target, BLADES, store=store, progress=again)
    check_bake(bfl, target, BLADES, store=store)


def test_one_changed_byte_is_found_by_check_and_by_verify(bfl, store, tmp_path):
    target = tmp_path / "guarded.safetensors"
    bake(bfl, target, BOTH, store=store)
    tensor = Checkpoint.open(target).tensors["double_blocks.1.txt_mod.lin.weight"].tensor
    data = bytearray(target.read_bytes())
    for place in (tensor.start, len(data) - 1, 100):
        changed = bytearray(data)
        changed[place] ^= 1
        target.write_bytes(changed)
        with pytest.raises(BakeError, match=r"differs from the result of these masks|its header does not match"):
            check_bake(bfl, target, BOTH, store=store)
    target.write_bytes(data + b"x")
    with pytest.raises(BakeError, match="bytes follow after the last tensor"):
        check_bake(bfl, target, BOTH, store=store)


def test_verify_tells_each_site_that_is_on_and_needs_to_know_the_base(bfl, base_transformer, store, tmp_path):
    bake(bfl, tmp_path / "guarded.safetensors", BOTH, store=store)
    tensors = load_file(tmp_path / "guarded.safetensors")
    site = "context_embedder:weight"
    row, column = np.argwhere(~load_masks(store / "tiny-flux" / "blades.safetensors")[0][site])[0]
    tensors["txt_in.weight"][row, column] = 1
    save_file(tensors, tmp_path / "edited.safetensors")
    with pytest.raises(ModelError, match=r"has no stamp of safeflux with its base model.*\(--base\)"):
        verify_files(tmp_path / "edited.safetensors", BOTH, store=store)
    found = verify_files(tmp_path / "edited.safetensors", BOTH, store=store, base=bfl)
    assert found.status.state is State.DEGRADED
    assert found.stamp is None
    assert len(found.status.faults) == 1
    assert found.status.faults[0].startswith(f"site {site!r}: 1 of ")
    assert verify_files(bfl, BOTH, store=store, base=bfl).status.state is State.UNGUARDED


def test_a_mask_may_leave_sites_whole(bfl, base_transformer, store, tmp_path, make_meta):
    masks = keep_all(find_sites(base_transformer).values())
    one = masks["context_embedder:weight"]
    one[3, 5] = False
    path = store / "tiny-flux" / "blades.safetensors"
    save_masks(path, MaskSet({**masks, "context_embedder:weight": one}), make_meta())
    bake(bfl, tmp_path / "guarded.safetensors", BLADES, store=store)
    assert check_bake(bfl, tmp_path / "guarded.safetensors", BLADES, store=store).num_masked_tensors == 1
    assert verify_files(tmp_path / "guarded.safetensors", BLADES, store=store).status.state is State.GUARDED


def test_the_commands_write_check_and_verify(bfl, store, tmp_path):
    (tmp_path / "blades.yaml").write_text(POLICY)
    target, asked = tmp_path / "guarded.safetensors", ["--policy", str(tmp_path / "blades.yaml"), "--store", str(store)]

    def run(*arguments):
        return CliRunner().invoke(main, [*map(str, arguments), *asked])

    assert run("bake", bfl, target).stdout.startswith(f"{target}: 0.")
    assert "exactly what blades gives" in run("bake", bfl, target, "--check").stdout
    assert json.loads(run("bake", bfl, target, "--check", "--json").stdout)["changed_bytes"] > 0
    assert json.loads(run("verify", target, "--json").stdout)["state"] == "GUARDED"
    assert run("verify", target).stdout.startswith(f"{target}: GUARDED, policy blades\n  enforce  weapons ")
    bare = run("verify", bfl, "--base", bfl)
    assert bare.exit_code == 1
    assert "UNGUARDED" in bare.stdout
