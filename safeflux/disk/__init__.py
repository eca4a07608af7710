"""Writing to disk whole or not at all, copying at the speed of the disk, and canonical JSON."""
