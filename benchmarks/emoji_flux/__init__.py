"""The recipe of emoji-flux, the small FLUX that ships with safeflux, from the art to the exported weights."""
