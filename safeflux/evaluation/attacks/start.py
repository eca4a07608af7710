"""Puts a campaign together for a model and a subject: things, prompts, who looks, and what the figures depend on."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.detectors.base import Detector, Wanted
from safeflux.detectors.calibration import calibrate
from safeflux.detectors.specs import open_detector
from safeflux.evaluation.attacks.base import FIRST_SEED, Attack, Part, Size, templates_of
from safeflux.evaluation.attacks.campaign import Campaign
from safeflux.evaluation.attacks.sight import Embed, Likeness, Sight
from safeflux.evaluation.attacks.things import Thing, erased_things, new_things, phrases_of, spread
from safeflux.evaluation.attacks.victim import Victim
from safeflux.evaluation.subject import Subject
from safeflux.evaluation.worded.words import packs_of
from safeflux.masks.mask_set import MaskSet
from safeflux.model.weights import find_transformer, fingerprint
from safeflux.packs.schema import Pack
from safeflux.profiles.schema import Profile
from safeflux.reference.unseen import unseen_pictures

_REFERENCES = 6
"""The model's own pictures of each thing that likeness compares with."""
_REAL = 12
"""Real pictures of each thing that it never learned."""
_NEUTRAL = 12
"""Neutral things that likeness knows."""


def make_campaign(
    pipe: Any,
    profile: Profile,
    subject: Subject,
    attacks: Sequence[Attack],
    *,
    detectors: Sequence[str],
    size: Size,
    folder: Path,
    packs: Mapping[str, Pack] = MappingProxyType({}),
    controls: Path | None = None,
) -> Campaign:
    """The campaign against the masks of a subject.

    Args:
        pipe: The model, nothing masked.
        profile: What the model is: its call, and the captions that it knows.
        subject: The masks.
        attacks: In the order of the report.
        detectors: Specs of those who look; headlines go by the first.
        size: How much is done.
        folder: For figures and pictures.
        packs: Words of categories, before those that the profile names and the concepts of mask files.
        controls: The folder of a campaign of other masks on the same things, whose unguarded model serves again.

    Raises:
        ConfigError: The folder holds another campaign, the controls are of other things or settings, the masks erase no
            things, or a pack is for none of them.
    """
    rng = np.random.default_rng((size.seed, 0))
    things = spread(erased_things(packs_of(subject.concepts, profile, packs)), size.things, rng)
    new = spread(new_things(profile.name), size.things, rng)
    settings = dict(profile.call)
    depends = {
        "model": profile.source,
        "dtype": str(find_transformer(pipe).dtype),
        "fingerprint": fingerprint(find_transformer(pipe)),
        "subject": subject.to_json(),
        "detectors": list(detectors),
        "size": vars(size),
        "call": settings,
        "things": {thing.name: list(thing.words) for thing in things},
        "new": [thing.name for thing in new],
    }
    return Campaign(
        pipe,
        subject.masks,
        attacks,
        things,
        new,
        phrases_of(profile),
        size,
        settings,
        depends,
        folder,
        controls=controls,
    )


def make_sight(campaign: Campaign) -> Sight:
    """Who looks: the detectors, and likeness to the model's own pictures or, of what it never learned, to real ones.

    The model's pictures are drawn here, nothing masked, from noises that nothing else uses. A detector whose thresholds
    are not right as they are is calibrated on these pictures.

    Raises:
        ConfigError: There is no such detector, or it does not know one of the erased things.
    """
    words = campaign.phrases.neutral
    neutral = [Thing(one, (one,)) for one in words[:: max(1, len(words) // _NEUTRAL)]]
    wanted = Wanted({thing.name: thing.words for thing in (*campaign.things, *campaign.new)}, words)
    detectors = {spec: open_detector(spec, wanted) for spec in campaign.depends["detectors"]}
    for opened, thing in product(detectors.values(), campaign.things):
        opened.place_of(thing.name)
    references = _references(campaign, neutral)
    for spec, opened in detectors.items():
        asked = {name: images for name, images in references.items() if name in opened.concepts}
        others = [image for one in neutral for image in references[one.name]]
        detectors[spec] = opened if opened.is_calibrated else calibrate(opened, asked, others)[0]
    return Sight(detectors, Likeness(_features(next(iter(detectors.values()))), references))


def _references(campaign: Campaign, neutral: Sequence[Thing]) -> dict[str, list[Image.Image]]:
    """Thing -> pictures that show it."""
    known, templates = [*campaign.things, *neutral], templates_of(campaign.phrases, Part.FIT)
    prompts = [templates[k % len(templates)].format(thing.words[0]) for thing in known for k in range(_REFERENCES)]
    victim = Victim(campaign.pipe, MaskSet({}), campaign.phrases, campaign.settings, batch=campaign.batch)
    images = victim.draw(prompts, [FIRST_SEED[Part.JUDGE] - 1 - k for k in range(len(prompts))])
    drawn = {thing.name: images[k * _REFERENCES : (k + 1) * _REFERENCES] for k, thing in enumerate(known)}
    real = {thing.name: [image for _, image in unseen_pictures(thing.name)[:_REAL]] for thing in campaign.new}
    return drawn | real


def _features(detector: Detector) -> Embed:
    """What a detector's scores come from where that is known, else the scores."""

    def embed(images: Sequence[Image.Image]) -> npt.NDArray[np.floating[Any]]:
        features = detector.features(images)
        return detector(images) if features is None else features

    return embed
