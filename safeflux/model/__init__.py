"""Policies on a model in memory: written, read back, verified, swapped and undone."""
