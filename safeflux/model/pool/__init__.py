"""Several policies on one loaded model, one in force at a time: differences computed once, requests by policy."""
