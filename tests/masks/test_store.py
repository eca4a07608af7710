"""The store: the mask set of a name that was trained for this base, or an error that says what is there instead."""

import os

import pytest

from safeflux.errors import MaskFileError, MaskMismatchError, StoreError
from safeflux.masks.file import save_masks
from safeflux.masks.store import Store, open_store
from safeflux.model.weights import fingerprint
from tests.helpers.models import WEIGHTS


@pytest.fixture
def base(base_transformer):
    return fingerprint(base_transformer)


def test_a_mask_set_is_found_by_name_and_base(store, base, make_masks, make_meta):
    found = Store([store]).find("blades", base)
    assert found.masks == make_masks(1, WEIGHTS, 0.02)
    assert found.meta == make_meta()
    assert found.path == store / "tiny-flux" / "blades.safetensors"
    assert found.sha256 == save_masks(store / "copy.safetensors", found.masks, found.meta)


def test_of_several_bases_the_right_one_is_taken(store, base, other_transformer, make_masks, make_meta):
    other = make_meta(base_model="other-flux", fingerprint=fingerprint(other_transformer))
    (store / "other-flux").mkdir()
    save_masks(store / "other-flux" / "blades.safetensors", make_masks(5), other)
    assert Store([store]).find("blades", base).meta.base_model == "tiny-flux"
    assert Store([store]).find("blades", other.fingerprint).meta.base_model == "other-flux"


def test_a_mask_for_another_base_is_refused(store, other_transformer):
    with pytest.raises(MaskMismatchError, match=r"'blades' was trained for other base weights \(tiny-flux\)"):
        Store([store]).find("blades", fingerprint(other_transformer))


@pytest.mark.parametrize("given", ["", [""]])
def test_an_empty_text_is_not_the_current_folder(given):
    with pytest.raises(StoreError, match=r"expected a folder, .* got an empty text"):
        open_store(given)


def test_an_unknown_name_is_refused_with_the_nearest_one(store, base):
    with pytest.raises(StoreError, match=r"'blade' is not in the store.*did you mean 'blades'"):
        Store([store]).find("blade", base)
    with pytest.raises(StoreError, match=r"it holds: blades, spirits"):
        Store([store]).find("zzz", base)


def test_two_different_files_that_fit_are_refused_and_two_equal_ones_are_not(
    store, base, make_masks, make_meta, tmp_path
):
    twin = tmp_path / "twin"
    twin.mkdir()
    save_masks(twin / "blades.safetensors", make_masks(1, WEIGHTS, 0.02), make_meta())
    assert Store([store, twin]).find("blades", base).path.is_relative_to(store)
    save_masks(twin / "blades.safetensors", make_masks(5), make_meta())
    with pytest.raises(StoreError, match=r"two different files fit.*tiny-flux.*twin"):
        Store([store, twin]).find("blades", base)


@pytest.mark.parametrize(
    "name", ["../blades", "tiny-flux/blades", "/etc/passwd", "", "*", "Blades", "blades\n", ".blades"]
)
def test_names_cannot_be_paths_or_patterns(store, base, name):
    with pytest.raises(StoreError, match="expected a name of lower-case letters"):
        Store([store]).find(name, base)


def test_a_link_out_of_the_store_is_refused(store, base, tmp_path):
    outside = tmp_path / "outside.safetensors"
    os.rename(store / "tiny-flux" / "blades.safetensors", outside)
    (store / "tiny-flux" / "blades.safetensors").symlink_to(outside)
    with pytest.raises(StoreError, match="is a link out of the store"):
        Store([store]).find("blades", base)


def test_a_damaged_file_is_refused_by_its_path(store, base):
    path = store / "tiny-flux" / "blades.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MaskFileError, match=r"blades.safetensors: tensor .*truncated"):
        Store([store]).find("blades", base)


def test_what_is_no_folder_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"no-such: expected a folder"):
        open_store(tmp_path / "no-such")


def test_given_folders_come_after_the_bundled_one(store, tmp_path):
    bundled = open_store()
    assert open_store(store).roots == (*bundled.roots, store)
    assert open_store([str(store), tmp_path]).roots == (*bundled.roots, store, tmp_path)
    assert open_store(bundled) is bundled
    assert {"blades", "spirits"} <= set(open_store(store).names())
