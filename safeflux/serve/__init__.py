"""A guarded model behind HTTP: one policy per request, policy changes under load, and a page for the operator."""
