"""The HTTP side of a service: routes, answers to what goes wrong, and limits of connections."""
