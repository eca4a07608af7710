"""A hundred concepts, a mask each, any of them on at once: learned in groups, repaired together, measured."""
