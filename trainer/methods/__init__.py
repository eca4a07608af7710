"""Ways to choose which bits are off."""
