"""Draws a preview: the same prompts from the same noises before and after `guard`. Nothing is written here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safeflux.errors import ConfigError
from safeflux.evaluation.bench import Progress
from safeflux.evaluation.figures import Shares
from safeflux.evaluation.questions import KEPT, Sizes, first_seed_of
from safeflux.evaluation.subject import Subject
from safeflux.evaluation.worded.bench import Artist, Looked, Seen
from safeflux.evaluation.worded.counting import Counter, Hits, Strictest
from safeflux.evaluation.worded.measure import Measuring
from safeflux.evaluation.worded.questions import Asked, Set
from safeflux.families.sites import find_sites
from safeflux.masks.store import Store
from safeflux.model.guard import guard
from safeflux.model.weights import find_transformer
from safeflux.packs.schema import Pack
from safeflux.pages.pictures import LARGEST
from safeflux.policy.load import Policy
from safeflux.preview.result import Pair, PreviewResult, Section
from safeflux.profiles.schema import Profile

OWN = "prompts of your own"
IMAGES = 8
"""Prompts a section by default."""
_CALIBRATED_ON = 32
"""Neutral pictures at least that thresholds are chosen on: of a handful, the next one may well be above them all."""


@dataclass(frozen=True)
class Wish:
    """What a preview shows.

    Attributes:
        images: Prompts of each category and of harmless things; half as many beside a harmless thing and of
            neighbours. 0: none but those of your own.
        seed: Of prompts and noises, 0 to 4095; they are the first of an evaluation with this seed.
        packs: Category -> words that go before the model's own.
        prompts: Prompts of your own.
        detectors: Specs of who looks; without any, the model's own detectors, or nobody.
        device: Where detectors of transformers run.
    """

    images: int = IMAGES
    seed: int = 0
    packs: Mapping[str, Pack] | None = None
    prompts: Sequence[str] = ()
    detectors: Sequence[str] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class _Kind:
    """A kind of section: the end of its set's name, its title, which verdict counts, if that is wanted, and of what."""

    set: str
    title: str
    verdict: Callable[[Strictest, str], Hits | None]
    is_wanted: bool
    of_other: bool = False


_KINDS = (
    _Kind("by name", "{} asked for", Strictest.found, False),
    _Kind("beside", "{} beside a harmless thing", Strictest.seen_beside, True, of_other=True),
    _Kind("neighbours", "nearest neighbours of {}", Strictest.right, True),
)
_HARMLESS = _Kind(KEPT[0], "harmless things", Strictest.right, True)
_MINE = _Kind(OWN, "prompts of your own", Strictest.any_found, False)


def run_preview(
    pipe: Any,
    profile: Profile,
    policy: Policy,
    subject: Subject,
    wish: Wish,
    *,
    store: Store,
    settings: Mapping[str, Any],
    batch: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> PreviewResult:
    """Draw, guard, draw again, and have the detectors look.

    Args:
        pipe: The pipeline, nothing masked; left as it was.
        profile: The model.
        policy: The policy.
        subject: Its masks.
        wish: What is shown.
        store: Where masks are.
        settings: Arguments of the pipeline's call.
        batch: Pictures drawn at a time.
        progress: Called with the number of pictures drawn so far.

    Raises:
        SafeFluxError: Whatever `guard` raises, or a detector cannot be opened; nothing was drawn then.
    """
    measuring = _measuring(profile, subject, wish)
    shown = _shown(measuring, wish)
    if not shown:
        raise ConfigError("expected something to draw, got --images 0 and no prompts; give one of the two")
    sets = {**shown, **{n: one for n, one in measuring.sets.items() if one.is_calibration and measuring.detectors}}
    transformer = find_transformer(pipe)
    shares = Shares.of(subject.masks, find_sites(transformer))

    def drawn(what: str, chosen: Mapping[str, Set]) -> dict[str, Looked]:
        artist = Artist(pipe, settings, batch, what, sum(len(one.asks) for one in chosen.values()), progress)
        return {
            name: artist.look(one, measuring.detectors, LARGEST if name in shown else None)
            for name, one in chosen.items()
        }

    guard(pipe, policy, store=store, dry_run=True)  # whatever it refuses is said before anything is drawn
    base = drawn("drawing before guard", sets)
    with guard(pipe, policy, store=store) as handle:
        masked = drawn("drawing after guard", shown)
        receipt = handle.receipt()
    seen = Seen(sets, base, masked, ((), ()), shares)
    counters = {name: Counter(measuring.words, seen, name, one) for name, one in measuring.detectors.items()}
    strictest = Strictest(list(counters.values())) if counters else None
    return PreviewResult(
        policy,
        profile.source,
        settings,
        wish.seed,
        [_section(name, kind, seen, strictest) for name, kind in _kinds(shown).items()],
        list(counters),
        {name: one.calibrations for name, one in counters.items()},
        shares,
        receipt,
    )


def _measuring(profile: Profile, subject: Subject, wish: Wish) -> Measuring:
    """The sets and the detectors of a small evaluation; there may be no detector."""
    kept = max(2 * _CALIBRATED_ON, 2 * wish.images)
    sizes = Sizes(max(2, wish.images), wish.images // 2, wish.images // 2, kept, 0)
    return Measuring.of(
        profile, subject.concepts, wish.packs or {}, wish.detectors, sizes, wish.seed, wish.device, needs_detector=False
    )


def _shown(measuring: Measuring, wish: Wish) -> dict[str, Set]:
    """The sets that are on the page, in its order."""
    own = Set(OWN, tuple(Asked(prompt, "") for prompt in wish.prompts), first_seed_of(OWN, wish.seed))
    names = [f"{category}/{kind.set}" for category in measuring.words.packs for kind in _KINDS]
    of_packs = {name: measuring.sets[name] for name in (*names, KEPT[0]) if name in measuring.sets and wish.images}
    few = {name: replace(one, asks=one.asks[: wish.images]) for name, one in of_packs.items()}
    return {**({OWN: own} if own.asks else {}), **few}


def _kinds(shown: Mapping[str, Set]) -> dict[str, _Kind]:
    """The kind of each set."""
    every = {kind.set: kind for kind in (*_KINDS, _HARMLESS, _MINE)}
    return {name: every[name if name in every else name.partition("/")[2]] for name in shown}


def _section(name: str, kind: _Kind, seen: Seen, strictest: Strictest | None) -> Section:
    one = seen.sets[name]
    hits = kind.verdict(strictest, name) if strictest else None
    by_row = dict(zip(hits.rows, zip(hits.base, hits.masked, strict=True), strict=True)) if hits else {}
    pairs = []
    for k, ask in enumerate(one.asks):
        thing = ask.other if kind.of_other else ask.thing
        verdicts = by_row.get(k)
        both = (bool(verdicts[0]), bool(verdicts[1])) if verdicts else None
        pictures = seen.base[name].images[k], seen.masked[name].images[k]
        pairs.append(Pair(ask.prompt, thing or "something erased", one.first_seed + k, *pictures, both))
    return Section(kind.title.format(name.partition("/")[0]), name, kind.is_wanted, pairs)
