"""The embedded reference model: emoji-flux, its vocabulary, and the judge and the CLIP that look at its pictures."""

NAME = "emoji-flux"
"""The name of the embedded model in commands and configurations."""
SECOND = "emoji-clip"
"""The name of the CLIP that is the second detector of its pictures: `zero-shot:emoji-clip`."""
CLIP_TOKENS = 24
"""Length of the CLIP tokenizer's output (its `model_max_length`)."""
T5_TOKENS = 20
"""`max_sequence_length` that emoji-flux was trained with."""
