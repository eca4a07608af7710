"""Learns the masks of categories, end to end through the whole sampler (Minimalist Concept Erasure, arXiv 2507.13386).

Packages, in the order of the data:

- `asked`: the configuration (`config`, `embedded` for the embedded model), templates, and the pairs of prompts.
- `sampling`: the model as a differentiable function: `sampler` and `pipelines` (the inputs of each family), `rollout`.
- `objective`: the loss. `prepare` lets the base model draw its `references`; `objective` computes one batch and the
  gradient for every mask of a subset; `memory` estimates the memory of a run.
- `methods`: two ways to choose bits: `saliency`, with `estimates` (the worth of each bit) and `selection` (the bits to
  switch), and `gates` (the hard-concrete relaxation).
- `run`: the rounds (`loop`), validation, checkpoints, logs, the export of mask files, and `session` (all in one).

Masks are measured with `safeflux.evaluation`.
"""
