"""Other ways to keep a concept out of the embedded model, by their papers' formulas, on the same footing as masks."""
