"""Mask sets: their algebra, their file format, where files are found, and the places they mask."""
