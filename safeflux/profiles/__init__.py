"""Profiles: what a model is, how it is drawn with, and how it is trained. Imports no torch."""
