"""The before/after report on the embedded model."""
