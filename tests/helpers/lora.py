"""Adapters of the real PEFT for the tests: on layers that their masks touch, and on others."""

import pytest
from peft import LoraConfig

from safeflux.policy.load import Adapters
from tests.helpers.policies import BOTH

QUIET = [
    pytest.mark.filterwarnings("ignore:There are modules"),  # diffusers, of a cast
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # PEFT, of a second adapter
    pytest.mark.filterwarnings("ignore:Adapter unknown was active"),
]
UNMASKED = ["to_q", "to_k"]
MASKED = ["to_q", "add_k_proj", "context_embedder", "ff_context.net.2", "proj_mlp"]
"""Layers that the masks of the tests do not touch, and some that they do."""


def allowing(policy):
    """The same policy, with any adapter let in."""
    return policy.model_copy(update={"name": f"{policy.name}, with adapters", "adapters": Adapters.ALLOW})


ALLOW = allowing(BOTH)


def lora(layers=MASKED, **options):
    return LoraConfig(r=2, target_modules=layers, init_lora_weights=False, **options)
