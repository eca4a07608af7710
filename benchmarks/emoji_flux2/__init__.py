"""The recipe of emoji-flux-2: a FLUX.2 of klein's layout on the icons of emoji-flux, a second architecture to mask."""
