"""A guarded model behind HTTP: a policy a request, policies changed under load, and a page for the operator."""
