"""What a path is that is no model which can be opened, and the way out: the words of errors, and nothing else."""

import re
from collections.abc import Iterable
from pathlib import Path

from safeflux.disk.canonical import read_json
from safeflux.errors import ModelError

PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
"""How files end that torch.save makes."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_POINTER = b"version https://git-lfs"
_NAME = "diffusion_pytorch_model"
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
"""How tensors end that only a quantiser writes."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large file that was not downloaded."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def lfs_pointer(path: Path) -> ModelError:
    """Make the error about such a file."""
    return ModelError(
        f"{path}: is a Git LFS pointer, not the file itself; get it with `git lfs pull`, or download the model again"
    )


def unreadable(path: Path, form: str, error: Exception) -> ModelError:
    """Make the error about a file that is not what its name says."""
    if is_lfs_pointer(path):
        return lfs_pointer(path)
    return ModelError(f"{path}: cannot be read as {form} ({error}); copy the file again")


def missing(path: Path) -> ModelError:
    """Make the error about a path where nothing is."""
    hint = "check the path"
    if path.is_symlink():
        hint = f"it is a link to {path.readlink()}, which is not there; download or copy the model again"
    elif _HUB_ID.fullmatch(str(path)) and not path.parent.exists():
        hint = (
            f"if it is a model of the Hugging Face Hub, download it first: hf download {path} --local-dir {path.name}, "
            f"and name {path.name}"
        )
    return ModelError(f"{path}: there is no such file or folder; {hint}")


def unknown_file(path: Path, known: str) -> ModelError:
    """Make the error about a file whose suffix no format has."""
    if is_lfs_pointer(path):
        return lfs_pointer(path)
    if path.suffix.lower() in PICKLES:
        return ModelError(
            f"{path}: is a file of torch.save, a pickle, which can run code when it is read; it is not read here. Make "
            "safetensors of it where it is trusted: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
            "'model.safetensors'), or load the pipeline with diffusers and call pipe.save_pretrained(FOLDER)"
        )
    return ModelError(
        f"{path}: expected a diffusers folder or a file that ends in {known}, got {path.suffix or 'no suffix'!r}. "
        "Save the model as safetensors: pipe.save_pretrained(FOLDER)"
    )


def no_transformer(root: Path, home: Path) -> ModelError:
    """Make the error about a folder without the files that diffusers saves of a transformer."""
    return ModelError(
        f"{home}: expected {_NAME}.safetensors or {_NAME}.safetensors.index.json, as diffusers saves a FLUX "
        f"transformer; {_found(root, home)}"
    )


def _found(root: Path, home: Path) -> str:
    snapshots = sorted(path for path in (root / "snapshots").glob("*") if path.is_dir())
    if root.name.startswith("models--") or snapshots:
        place = snapshots[-1] if len(snapshots) == 1 else root / "snapshots" / "REVISION"
        return f"this is a model's folder in the hub's cache, and the model is below it; name {place}"
    index = root / "model_index.json"
    if index.is_file() and (entry := read_json(index).get("transformer")) is not None and not any(entry):
        return (
            "model_index.json says that this pipeline was saved without its transformer; name the folder or file that "
            "holds it"
        )
    files = sorted(path for path in home.glob("*") if path.is_file())
    variants = {
        match[1] for path in files if (match := re.fullmatch(rf"{_NAME}\.([^.]+?)(-\d+.*)?\.safetensors", path.name))
    }
    if variants:
        variant = sorted(variants)[0]
        return (
            f"found the variant {variant!r} alone. Save it under the usual name: "
            f"FluxPipeline.from_pretrained({str(root)!r}, variant={variant!r}, dtype='auto').save_pretrained(FOLDER)"
        )
    if pickles := [path for path in files if path.suffix.lower() in PICKLES]:
        return (
            f"found {pickles[0].name}, a pickle, which can run code when it is read. Where it is trusted, make "
            "safetensors of it: load the model with diffusers (use_safetensors=False), then save_pretrained(FOLDER)"
        )
    if others := [path for path in files if path.suffix.lower() in (".safetensors", ".sft", ".gguf", ".onnx")]:
        return f"found {others[0].name}; name the file itself: {others[0]}"
    return "found none; name a pipeline's folder, its transformer's, or a file"


def check_not_packed(where: Path, names: Iterable[str]) -> None:
    """Make sure that no quantiser packed a model's weights in a way that masks cannot be written to.

    Raises:
        ModelError: One did.
    """
    for end, quantiser in _QUANTISERS.items():
        if packed := next((name for name in names if name.endswith(end)), None):
            raise ModelError(
                f"{where}: is quantised to {quantiser} (tensor {packed!r}), where no single weight can be set to zero. "
                "Bake or verify the model before it is quantised, then quantise the guarded one"
            )


def bfl_in_folder(home: Path, files: list[Path]) -> ModelError:
    """Make the error about a diffusers folder whose tensors have the names of Black Forest Labs."""
    way_out = (
        f"name the file itself: {files[0]}"
        if len(files) == 1
        else "convert it: FluxTransformer2DModel.from_single_file(FILE).save_pretrained(FOLDER)"
    )
    return ModelError(
        f"{home}: its tensors have Black Forest Labs' names, which diffusers does not load from a folder; {way_out}"
    )
