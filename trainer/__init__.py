"""Learns the masks of categories, end to end through the whole sampler (Minimalist Concept Erasure, arXiv 2507.13386).

Rooms, in the order of the data.
What is asked for: `config`, `embedded` (the embedded model's), `prompts` (erase pairs and prompts to preserve).
The model as a function: `factors` (masks as factors on the weights), `bits` (all of them as one vector), `sampler` and
`pipelines` (what each family draws from), `rollout` (the differentiable sampler), `memory` (what it will need).
The loss: `references` (what the base model draws, once), `trajectory` (another target), `losses`, `objective` (one
batch, and the gradient for every mask of a subset). Two methods choose the bits: `saliency`, with `estimates` (what
each bit is worth) and `selection` (which to switch), and `gates` (the hard-concrete relaxation).
The run: `loop`, `validation`, `processes`, `logs`, `minimise`, `export` (mask files), `session` (all in one).

Beside it, `safeflux eval`: `questions`, `bench`, `promptbench`, `answers`, `tally`, `metrics`, `figures`, `report` and
`plots`.
"""
