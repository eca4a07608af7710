"""The HTTP side of a service: routes, error responses, and connection limits."""
