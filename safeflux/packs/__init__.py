"""Packs: a category in words. Concepts, the words for them, what is drawn instead, and what must stay. No torch."""
