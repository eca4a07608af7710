"""Atomic writes, copies at the speed of the disk, strict reading, and canonical JSON."""
