"""Policies: YAML read strictly, checked, resolved with their parents, compared and tested. No torch."""
