"""What a pack is: the schema of the file."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from safeflux.packs.templates import BY_KIND, Templates, faults
from safeflux.policy.schema import Name, Strict, Versioned
from safeflux.policy.strict_file import json_schema
from safeflux.policy.yaml_reader import Loc
from safeflux.reference.vocabulary import TargetKind

Text = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]
"""Words as they stand in a prompt, things with their article: `a dagger`."""


class PackConcept(Strict):
    """One thing to erase."""

    words: tuple[Text, ...] = Field(strict=False, min_length=1, description="Words that training uses: `a dagger`.")
    held_out: tuple[Text, ...] = Field((), strict=False, description="Other words, that only the evaluation uses.")
    anchor: Text | None = Field(None, description="What is drawn instead of this concept; default: the pack's anchor.")


class PackTemplates(Strict):
    """Sentences for the words: `{thing}`, and `{style}` in a pack of styles; `{first}` and `{second}` in pairs."""

    photographs: tuple[Text, ...] = Field((), strict=False, description="Prompts for photographs.")
    drawings: tuple[Text, ...] = Field((), strict=False, description="Prompts for drawings and paintings.")
    pairs: tuple[Text, ...] = Field((), strict=False, description="Prompts with a second thing, which is preserved.")


class Pack(Versioned):
    """A category in words: one pack makes one mask."""

    kind: Literal["Pack"] = Field(description="Always Pack.")
    name: Name = Field(description="The policy category that the mask erases.")
    description: str = Field("", description="One line for the people who choose a pack.")
    target: TargetKind = Field(
        "object", description="object: any of the concepts; identity: one being; style: a style."
    )
    concepts: dict[Name, PackConcept] = Field(min_length=1, description="Concepts to erase.")
    anchor: Text = Field(
        "dropped", description="Drawn instead: words, `dropped` (the prompt without the concept) or `null` (no prompt)."
    )
    neighbours: tuple[Text, ...] = Field(
        (), strict=False, description="Harmless things that look or are used most alike; the evaluation asks for them."
    )
    neutral: tuple[Text, ...] = Field((), strict=False, description="Other things; training preserves them.")
    templates: PackTemplates = Field(PackTemplates(), description="Prompts; default: those of the target's kind.")

    def faults(self) -> Iterator[tuple[Loc, str]]:
        """What no single key shows: the place and the fault of words that stand twice, and of templates."""
        seen: dict[str, str] = {}
        for name, concept in self.concepts.items():
            for group in ("words", "held_out"):
                for k, word in enumerate(getattr(concept, group)):
                    if word in seen:
                        message = f"{word!r} is a word for {seen[word]} already; each word belongs to one concept"
                        yield ("concepts", name, group, k), message
                    seen.setdefault(word, name)
        for group in ("neighbours", "neutral"):
            for k, word in enumerate(getattr(self, group)):
                if word in seen:
                    yield (group, k), f"{word!r} is a word for {seen[word]}, which is erased; leave it out"
        if self.templates.pairs and not (self.templates.photographs or self.templates.drawings):
            yield ("templates", "pairs"), "expected photographs or drawings beside the pairs"
        for fault in faults(self.prompts, {"thing", self.slot}, {self.slot}):
            yield ("templates",), fault

    @property
    def slot(self) -> str:
        """The placeholder that the words fill."""
        return "style" if self.target == "style" else "thing"

    @property
    def is_ready(self) -> bool:
        """Whether it is one of things, with words of both kinds, as the bundled ones to start from are not."""
        return self.target == "object" and bool(self.held_out) and self.anchor != "dropped"

    @property
    def prompts(self) -> Templates:
        """Its own templates or, without, those of its kind."""
        own = self.templates
        single = own.photographs + own.drawings
        return Templates(single, own.pairs) if single else BY_KIND[self.target]

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Concept -> the words that training uses."""
        return {name: concept.words for name, concept in self.concepts.items()}

    @property
    def every_word(self) -> frozenset[str]:
        """The words of all concepts, those that only the evaluation uses too."""
        return frozenset(word for one in self.concepts.values() for word in one.words + one.held_out)

    @property
    def held_out(self) -> dict[str, tuple[str, ...]]:
        """Concept -> the words that only the evaluation uses; concepts without any are left out."""
        return {name: concept.held_out for name, concept in self.concepts.items() if concept.held_out}


def pack_schema() -> dict[str, Any]:
    """The JSON Schema of a pack, draft-07, for editors."""
    return json_schema(Pack, "safeflux pack")
