"""The commands of `safeflux mask`."""
