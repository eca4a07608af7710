"""What can be shown to others: signatures of mask files, and the log of what was done to models."""
