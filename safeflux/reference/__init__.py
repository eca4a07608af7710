"""The embedded reference model: emoji-flux, its vocabulary, and the judge of its pictures."""

NAME = "emoji-flux"
"""The name of the embedded model in commands and configurations."""
CLIP_TOKENS = 24
"""Length of the CLIP tokenizer's output (its `model_max_length`)."""
T5_TOKENS = 20
"""`max_sequence_length` that emoji-flux was trained with."""
