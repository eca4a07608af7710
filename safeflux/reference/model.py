"""The embedded model's files, how to load them, and how to call them."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safeflux.disk.hub import local_folder
from safeflux.errors import ModelError
from safeflux.reference import NAME, SECOND, T5_TOKENS

EMOJI_FLUX = Path(__file__).parent / NAME
"""A diffusers folder: plain `FluxPipeline.from_pretrained(EMOJI_FLUX)` loads it."""

EMOJI_CLIP = Path(__file__).parent / SECOND
"""A folder of transformers: any zero-shot classifier reads it."""

EMOJI_FLUX_CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 8,
    "max_sequence_length": T5_TOKENS,
}
"""Arguments of the pipeline's call: it was trained at this size and prompt length."""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


def model_folder(name: str | Path) -> Path:
    """The folder of a model that is named by its path, by a hub id or, for the embedded one, by `emoji-flux`.

    Raises:
        ModelError: A hub id of a model that is not on this machine.
    """
    if str(name) == NAME:
        return EMOJI_FLUX
    is_id = _HUB_ID.fullmatch(str(name)) and not Path(name).exists()
    return local_folder(str(name)) if is_id else Path(name)


def load_pipeline(folder: str | Path = EMOJI_FLUX, **options: Any) -> Any:
    """Load a folder with the pipeline class of diffusers that it names, float32, without progress bars or a network.

    The embedded model is a `FluxPipeline`.

    Args:
        folder: Another FLUX pipeline than the embedded one, which goes by its name `emoji-flux` too.
        options: Passed to `from_pretrained`, e.g. `dtype`.

    Raises:
        ModelError: The folder holds no model.
    """
    folder = model_folder(folder)
    _read_index(folder)
    with quiet():
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_class(folder: str | Path = EMOJI_FLUX) -> Any:
    """The class of diffusers that a pipeline's folder names; its weights are not read.

    Raises:
        ModelError: The folder holds no pipeline, or one of a class that the installed diffusers does not have.
    """
    folder = model_folder(folder)
    name = _read_index(folder).get("_class_name")
    with quiet():
        import diffusers

        kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise ModelError(
            f"{folder}: expected a pipeline of diffusers {diffusers.__version__}, got the class {name!r}; a newer "
            "diffusers may have it"
        )
    return kind


def _read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline's folder."""
    path = folder / "model_index.json"
    if not path.is_file():
        way_out = "install safeflux anew" if folder == EMOJI_FLUX else f"give the folder of a pipeline, or {NAME}"
        raise ModelError(
            f"{folder}: expected a FLUX pipeline of diffusers, found no model_index.json; {way_out}"
        ) from FileNotFoundError(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ModelError(f"{path}: expected JSON, got something else ({error}); download the model anew") from error
    if not isinstance(index, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(index).__name__}; download the model anew")
    return index


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and notes, and restore their settings afterwards."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    bars = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    verbosity = transformers_log.get_verbosity()
    for log in bars:
        log.disable_progress_bar()
    transformers_log.set_verbosity_error()
    try:
        yield
    finally:
        transformers_log.set_verbosity(verbosity)
        for log in bars:
            log.enable_progress_bar()
