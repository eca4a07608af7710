"""The embedded reference model: emoji-flux, its vocabulary, and the judge that says what a picture shows."""

NAME = "emoji-flux"
"""What commands and configurations call the embedded model."""
CLIP_TOKENS = 24
"""Length of the CLIP tokenizer's output (its `model_max_length`)."""
T5_TOKENS = 20
"""`max_sequence_length` that emoji-flux was trained with."""
