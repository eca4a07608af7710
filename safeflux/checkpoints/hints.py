"""Error messages about paths that cannot be opened as a model: what was found, and what to do."""

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from safeflux.disk.canonical import read_json
from safeflux.errors import ModelError
from safeflux.reference import NAME

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
"""Suffixes of files from torch.save."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_POINTER = b"version https://git-lfs"
_NAME = "diffusion_pytorch_model"
_DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16"}
"""The types of variants; diffusers loads float32 unless it is given one, and its models do not know `auto`."""
_QUANTISERS = {
    ".quant_state.bitsandbytes__nf4": "NF4 by bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "FP4 by bitsandbytes",
    ".SCB": "int8 by bitsandbytes",
    "weight_scale_2": "NVFP4",
    ".weight_packed": "a packed type by compressed-tensors",
    ".qweight": "a packed type by GPTQ, AWQ or Nunchaku",
    ".weight._data": "a packed type by quanto",
    "_weight_qdata": "a packed type by torchao",
}
"""Suffixes of tensors that only quantisers write."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is the pointer that Git LFS leaves for a file that was not downloaded."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def lfs_pointer(path: Path) -> ModelError:
    """The error about such a file."""
    return ModelError(
        f"{path}: is a Git LFS pointer, not the file itself; get it with `git lfs pull`, or download the model again"
    )


def unreadable(path: Path, form: str, error: Exception) -> ModelError:
    """The error about a file whose content does not match its suffix."""
    if is_lfs_pointer(path):
        return lfs_pointer(path)
    return ModelError(f"{path}: cannot be read as {form} ({error}); copy the file again")


def missing(path: Path) -> ModelError:
    """The error about a path that does not exist."""
    hint = "check the path"
    if path.is_symlink():
        hint = f"it is a link to {path.readlink()}, which does not exist; download or copy the model again"
    elif difflib.get_close_matches(str(path), [NAME], cutoff=0.8):
        hint = f"did you mean {NAME!r}?"
    elif _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        hint = (
            f"if it is a model of the Hugging Face Hub, download it first: hf download {path} --local-dir {path.name}, "
            f"and pass {path.name}"
        )
    return ModelError(f"{path}: does not exist; {hint}")


def unknown_file(path: Path, known: str) -> ModelError:
    """The error about a file with an unknown suffix."""
    if is_lfs_pointer(path):
        return lfs_pointer(path)
    if path.suffix.lower() in PICKLES:
        return ModelError(
            f"{path}: is a pickle from torch.save, which can run code when it is loaded, so it is not read. If you "
            "trust it, convert it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'model.safetensors'), or load the pipeline with diffusers and call pipe.save_pretrained(FOLDER)"
        )
    return ModelError(
        f"{path}: expected a diffusers folder or a file that ends in {known}, got {path.suffix or 'no suffix'!r}. "
        "Save the model as safetensors: pipe.save_pretrained(FOLDER)"
    )


def no_transformer(root: Path, home: Path, suffixes: Collection[str]) -> ModelError:
    """The error about a folder without the files of a transformer as diffusers saves it.

    Args:
        root: The folder as given.
        home: Where the transformer should be.
        suffixes: Those of known formats.
    """
    return ModelError(
        f"{home}: expected {_NAME}.safetensors or {_NAME}.safetensors.index.json, as diffusers saves a FLUX "
        f"transformer; {_found(root, home, suffixes)}"
    )


def _found(root: Path, home: Path, suffixes: Collection[str]) -> str:
    snapshots = sorted(path for path in (root / "snapshots").glob("*") if path.is_dir())
    if root.name.startswith("models--") or snapshots:
        place = snapshots[-1] if len(snapshots) == 1 else root / "snapshots" / "REVISION"
        return f"this is a model's folder in the hub's cache, and the model is below it; pass {place}"
    index = root / "model_index.json"
    if index.is_file() and (entry := read_json(index).get("transformer")) is not None and not any(entry):
        return (
            "according to model_index.json this pipeline was saved without its transformer; pass the folder or file "
            "of the transformer"
        )
    files = sorted(path for path in home.glob("*") if path.is_file())
    variants = {
        match[1] for path in files if (match := re.fullmatch(rf"{_NAME}\.([^.]+?)(-\d+.*)?\.safetensors", path.name))
    }
    if variants:
        variant, loader = sorted(variants)[0], "DiffusionPipeline" if index.is_file() else "AutoModel"
        return (
            f"found only the variant {variant!r}. Save it under the usual name: diffusers.{loader}.from_pretrained("
            f"{str(root)!r}, variant={variant!r}, dtype={_DTYPES.get(variant, 'torch.float32')})"
            ".save_pretrained('FOLDER')"
        )
    if pickles := [path for path in files if path.suffix.lower() in PICKLES]:
        return (
            f"found {pickles[0].name}, a pickle, which can run code when it is loaded. If you trust it, convert it to "
            "safetensors: load the model with diffusers (use_safetensors=False), then save_pretrained(FOLDER)"
        )
    if others := [path for path in files if path.suffix.lower() in suffixes]:
        return f"found {others[0].name}; pass the file itself: {others[0]}"
    return "found neither; pass the folder of a pipeline or of its transformer, or a file"


def check_not_packed(where: Path, names: Iterable[str]) -> None:
    """Check that the weights are not packed by a quantiser in a way that masks cannot be written to.

    Raises:
        ModelError: They are.
    """
    for end, quantiser in _QUANTISERS.items():
        if packed := next((name for name in names if name.endswith(end)), None):
            raise ModelError(
                f"{where}: is quantised to {quantiser} (tensor {packed!r}), where single weights cannot be set to "
                "zero. Bake or verify the model before it is quantised, then quantise the guarded one"
            )


def bfl_in_folder(home: Path, files: list[Path]) -> ModelError:
    """The error about a diffusers folder whose tensors have the names of Black Forest Labs."""
    way_out = (
        f"pass the file itself: {files[0]}"
        if len(files) == 1
        else "merge the shards into one file and pass that, or download the model as diffusers saves it"
    )
    return ModelError(
        f"{home}: its tensors have Black Forest Labs' names, which diffusers does not load from a folder; {way_out}"
    )
