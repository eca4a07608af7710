"""Put the trained parts together as a plain Flux2KleinPipeline folder, with its profile beside it.

    python -m benchmarks.emoji_flux2.export --out runs/emoji_flux2

Of a run that is still training it takes the last checkpoint, to look at what it draws by then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
import yaml
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

from safeflux.profiles.load import load_profile
from safeflux.profiles.schema import Profile
from safeflux.reference import NAME as EMBEDDED
from safeflux.reference.vocabulary import Vocabulary, vocabulary

from .network import TEXT_LAYERS, TEXT_TOKENS, TRANSFORMER, EmojiFlux2
from .options import out_option

NAME = "emoji-flux-2"
CALL: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 8,
    "guidance_scale": 1.0,
    "max_sequence_length": TEXT_TOKENS,
    "text_encoder_out_layers": list(TEXT_LAYERS),
}
"""Arguments of the pipeline's call."""


def trained(out: Path, words: Vocabulary) -> EmojiFlux2:
    """The model of a run: what it ended with, else what its last checkpoint has."""
    model, done = EmojiFlux2(words), out / "flow.pt"
    path = done if done.exists() else out / "flow.ckpt"
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state if done.exists() else state["model"])
    return model.eval()


def assemble(model: EmojiFlux2, vae: AutoencoderKLFlux2) -> Flux2KleinPipeline:
    """The pipeline, distilled as klein is: without a second forward for guidance."""
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        transformer=model.transformer,
        is_distilled=True,
    )


def profile_of(folder: Path) -> Profile:
    """The embedded model's profile, with its captions and its judge, for the pipeline in a folder."""
    changes = {
        "name": NAME,
        "description": "A FLUX.2 of klein's layout that learned the icons of emoji-flux.",
        "model": str(folder.resolve()),
        "pipeline": "Flux2KleinPipeline",
        "call": CALL,
        "transformer": {"class": "Flux2Transformer2DModel", **TRANSFORMER},
        "memory": None,
    }
    profile = load_profile(EMBEDDED)
    training = profile.training.model_copy(update={"max_sequence_length": TEXT_TOKENS})
    return profile.model_copy(update={**changes, "training": training})


@click.command(help=__doc__)
@out_option
def main(out: Path) -> None:
    """Write `emoji-flux-2/` and `emoji-flux-2.yaml`."""
    folder = out / NAME
    assemble(trained(out, vocabulary()), AutoencoderKLFlux2.from_pretrained(out / "vae")).save_pretrained(folder)
    profile = profile_of(folder).model_dump(mode="json", exclude_none=True)
    (out / f"{NAME}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    click.echo(f"{folder}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
