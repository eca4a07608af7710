"""Attacks on masks: one file for each close group, one protocol, a registry, and a campaign that runs them."""
