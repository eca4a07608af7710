"""`safeflux policy`: one module for the group, one for what a policy comes to on a model."""
