"""The recipe of emoji-flux, the small FLUX that ships with safeflux: art, VAE, text encoders, flow, judge, evaluation, export."""
