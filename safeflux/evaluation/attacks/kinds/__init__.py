"""The attacks themselves, one file for each close group, and what those with gradients share."""
