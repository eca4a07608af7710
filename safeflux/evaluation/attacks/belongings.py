"""What an attacker brings along: pictures of the thing, pictures of harmless things, the unguarded weights.

They are made before any mask is written, from the noises and prompts for searching.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from safeflux.evaluation.attacks.base import FIRST_SEED, Attack, Part, templates_of
from safeflux.evaluation.attacks.things import Phrases, Thing
from safeflux.evaluation.attacks.victim import Picture, Victim
from safeflux.masks.mask_set import MaskSet
from safeflux.reference.unseen import unseen_pictures

if TYPE_CHECKING:
    from safeflux.evaluation.attacks.campaign import Campaign

_NEUTRAL = 48
"""Pictures of harmless things, where an attack trains on them."""


def prepare(campaign: "Campaign", attacks: Iterable[Attack]) -> Victim:
    """The unguarded victim, with all that these attacks need."""
    attacks = list(attacks)
    count = max((attack.num_pictures(campaign.size) for attack in attacks), default=0)
    victim = Victim(campaign.pipe, MaskSet({}), campaign.phrases, campaign.settings, batch=campaign.batch)
    templates, pictures = templates_of(campaign.phrases, Part.FIT), {}
    for k, thing in enumerate(campaign.things if count else ()):
        pictures[thing.name] = _drawn(victim, templates, [thing.words[0]] * count, first=k * 1024)
    for thing in campaign.new if count else ():
        pictures[thing.name] = real_pictures(thing, campaign.phrases)[:count]
    neutral: list[Picture] = []
    if any(attack.needs_neutral for attack in attacks):
        words = [campaign.phrases.neutral[k % len(campaign.phrases.neutral)] for k in range(_NEUTRAL)]
        drawn = _drawn(victim, templates, words, first=2**19)
        neutral = [Picture(one.template.format(word), one.image) for one, word in zip(drawn, words, strict=True)]
    base = None
    if any(attack.needs_base for attack in attacks):
        base = copy.deepcopy(campaign.pipe.transformer).requires_grad_(False)
    return replace(victim, pictures=pictures, neutral=neutral, base=base)


def real_pictures(thing: Thing, phrases: Phrases) -> list[Picture]:
    """The real pictures of a new thing whose prompts are for searching: none looks like one that is judged."""
    allowed = set(templates_of(phrases, Part.FIT))
    every = [Picture(text.replace(thing.words[0], "{}"), image) for text, image in unseen_pictures(thing.name)]
    return [picture for picture in every if picture.template in allowed]


def _drawn(victim: Victim, templates: Sequence[str], words: Sequence[str], first: int) -> list[Picture]:
    """The model's own pictures, in the templates in turn."""
    chosen = [templates[(k * 7) % len(templates)] for k in range(len(words))]
    prompts = [template.format(word) for template, word in zip(chosen, words, strict=True)]
    images = victim.draw(prompts, [FIRST_SEED[Part.JUDGE] - 2**20 - first - k for k in range(len(words))])
    return [Picture(template, image) for template, image in zip(chosen, images, strict=True)]
