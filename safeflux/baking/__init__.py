"""Policies in files: guarded copies are written, compared and verified without loading a model. No torch."""
