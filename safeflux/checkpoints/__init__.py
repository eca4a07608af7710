"""Models in files, looked at without loading them: formats, layouts, number formats. No torch."""
