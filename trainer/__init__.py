"""Learns the masks of a category, end to end through the whole sampler (Minimalist Concept Erasure, arXiv 2507.13386).

Rooms, in the order of the data: `config` (what is asked for), `prompts` (erase pairs and neutral prompts), `factors`
(masks as factors on the weights), `bits` (all of them as one vector), `rollout` (the differentiable sampler), `losses`,
`objective` (the losses of one batch as functions of the factors). Two methods choose the bits: `saliency`, with
`estimates` (what each bit is worth) and `selection` (which to switch), and `gates` (the hard-concrete relaxation).
Around them: `loop` (the run), `export` (the mask file), `session` (all in one). What masks are worth: `questions` (what
is asked), `bench` (draws it), `answers` and `tally` (count it), `metrics`, `figures` (the record), `promptbench` (the
prompts of a file, any model), `report` and `plots`.
"""
