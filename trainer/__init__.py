"""Learns the masks of a category, end to end through the whole sampler (Minimalist Concept Erasure, arXiv 2507.13386).

Rooms, in the order of the data: `config` (what is asked for), `prompts` (erase pairs and neutral prompts), `rollout`
(the differentiable sampler), `gates` (masks as factors on the weights), `losses`, `saliency` (what each bit is
worth), `selection` (which bits to switch off and on), `loop` (the run), `evaluate` (what the judge finds), `export`
(the mask file).
"""
