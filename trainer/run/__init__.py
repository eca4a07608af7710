"""A training run: rounds, validation, checkpoints, curves, export."""
