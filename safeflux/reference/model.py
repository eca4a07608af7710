"""The embedded model's files, how to load them, and how to call them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safeflux.errors import ModelError
from safeflux.reference import NAME, T5_TOKENS

MODEL = Path(__file__).parent / NAME
"""A diffusers folder: plain `FluxPipeline.from_pretrained(MODEL)` loads it."""

CALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 8, "max_sequence_length": T5_TOKENS}
"""What to pass to the pipeline: it was trained at this size and prompt length."""


def model_folder(name: str | Path) -> Path:
    """The folder of a model that is named by its path, or, for the embedded one, by `emoji-flux`."""
    return MODEL if str(name) == NAME else Path(name)


def load_pipeline(folder: str | Path = MODEL, **options: Any) -> Any:
    """Load a folder with the pipeline class of diffusers that it names, float32, without progress bars or a network.

    The embedded model is a `FluxPipeline`.

    Args:
        folder: Another FLUX pipeline than the embedded one, which goes by its name `emoji-flux` too.
        options: Passed to `from_pretrained`, e.g. `dtype`.

    Raises:
        ModelError: The folder holds no model.
    """
    folder = model_folder(folder)
    if not (folder / "model_index.json").is_file():
        way_out = "install safeflux anew" if folder == MODEL else f"name such a folder, or leave it to {NAME}"
        raise ModelError(f"{folder}: expected a FLUX pipeline of diffusers, found no model_index.json; {way_out}")
    with _quiet():
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' loading bars and notes off the terminal, then let them speak as before."""
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
