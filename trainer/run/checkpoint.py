"""Files that a run resumes from: its checkpoint, and the digest of its configuration."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.erasure import NoisedConfig, TermConfig
from safeflux.trainer.asked.many import ManyConfig
from safeflux.trainer.asked.prompts import PAIR_SHARE
from safeflux.trainer.methods.saliency import BETA_START, PRICE_SMOOTHING, SMOOTHING

from safeflux.disk.atomic import written_atomically
from safeflux.errors import ConfigError

CHECKPOINT = "checkpoint.pt"
REFERENCES = "references.cache"
"""Safetensors inside; another suffix, since the mask files of a folder go by theirs."""
CONSTANTS: dict[str, dict[str, float]] = {
    "prompts": {"pair_share": PAIR_SHARE, "drop_share": 0.0},
    "saliency": {"beta_start": BETA_START, "smoothing": SMOOTHING, "price_smoothing": PRICE_SMOOTHING},
}
"""Part of the digest beside the options, since they decide the masks as well; no prompts are dropped. Masks made while
these were options keep the digest that they were made with."""

ADDED = {
    "erase_terms": TermConfig(),
    "preserve_terms": TermConfig(),
    "noised": NoisedConfig(),
    "many": ManyConfig(),
    "preserve_loss": "absolute",
}
"""Options that came later, and groups of them; masks made without them keep their digest."""
ADDED_TO_NOISED = ("tuned", "tuned_rate")
"""The same, inside a group."""


def config_digest(config: TrainConfig) -> str:
    """The sha256 of the configuration and the method's constants; without `precision`, so that a run may move.

    A run that moves to another machine keeps the dtype that it began with.
    """
    options = config.model_dump(mode="json", exclude={"precision"})
    if config.detector in (None, "judge"):  # as before these were options
        del options["detector"], options["call"]
    if not config.confirm:  # as before this was an option
        del options["confirm"]
    for option, default in ADDED.items():
        if getattr(config, option) == default:
            del options[option]
    if "noised" in options and not config.noised.tuned:
        options["noised"] = {key: value for key, value in options["noised"].items() if key not in ADDED_TO_NOISED}
    for group, constants in CONSTANTS.items():
        options[group] |= constants
    return sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def read_checkpoint(folder: Path, config: TrainConfig, processes: int) -> dict[str, Any] | None:
    """The state that a run in this folder was in after its last round; None for a folder without a run.

    Its tensors are mapped from the file, which is never in memory as a whole: copy what is to be kept.

    Args:
        folder: That of the run.
        config: The run.
        processes: How many there are. Each has batches of its own, so that another number would learn other masks.

    Raises:
        ConfigError: The folder holds a run of another configuration or of another number of processes, or its
            checkpoint cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with ZipFile(path) as file:  # mapped tensors are not checked when they are loaded
            if damaged := file.testzip():
                raise BadZipFile(f"{damaged} is damaged")
        state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
        digest = state["config"]
    except Exception as error:  # torch.load raises whatever zip, pickle and its own reader raise
        raise ConfigError(
            f"{path}: expected a checkpoint of a training run, and it cannot be read ({error}). Choose another --out, "
            "or remove the file to begin again."
        ) from error
    if digest != config_digest(config):
        raise ConfigError(
            f"{path}: this folder holds a run of another configuration. Resume with that configuration, or choose "
            "another --out."
        )
    began = state.get("processes", processes)
    if began != processes:
        raise ConfigError(
            f"{path}: this run began with {began} processes, each with batches of its own, expected as many, got "
            f"{processes}. Resume with `accelerate launch --num_processes {began}`, or choose another --out."
        )
    return state


def write_checkpoint(folder: Path, config: TrainConfig, state: dict[str, Any]) -> None:
    """Replace the checkpoint of a folder; the older one stands until all bytes are on disk.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    with written_atomically(folder / CHECKPOINT) as file:
        torch.save({"config": config_digest(config), **state}, file)
