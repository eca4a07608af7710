"""A policy resolved and checked for one base model before anything is written. No torch."""
