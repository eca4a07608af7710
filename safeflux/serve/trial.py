"""Default prompts for a preview: one for each category that the policy enforces."""

from safeflux.packs.templates import BY_KIND
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Action
from safeflux.profiles.schema import Profile
from safeflux.reference.vocabulary import with_article


def trial_prompts(profile: Profile, plan: Plan) -> list[str]:
    """A prompt for the first concept of each enforced category, in the model's own form of caption if it has one.

    Args:
        profile: The model's.
        plan: Of the previewed policy.
    """
    things = [
        with_article(category.stored[0].meta.concepts[0].replace("-", " "))
        for category in plan.categories.values()
        if category.action is Action.ENFORCE
    ]
    speech = profile.speech
    template = (speech or BY_KIND["object"]).single[0]
    slots = {slot: values[0] for slot, values in speech.slots.items()} if speech else {}
    return [template.format(thing=thing, **slots) for thing in dict.fromkeys(things)]
