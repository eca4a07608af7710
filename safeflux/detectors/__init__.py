"""Detectors: what says whether a thing is in a picture. All of them behind one protocol. Imports no torch."""
