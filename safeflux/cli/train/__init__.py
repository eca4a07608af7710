"""`safeflux train` and what is below it."""
