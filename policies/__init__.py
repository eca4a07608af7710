"""The bundled policies and masks: data only, read through `importlib.resources.files("safeflux.policies")`."""
