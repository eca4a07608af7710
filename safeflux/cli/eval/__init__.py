"""`safeflux eval` and what is below it."""
