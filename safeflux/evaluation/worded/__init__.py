"""The evaluation of masks of any model: categories in the words of packs, looked for by any detector."""
