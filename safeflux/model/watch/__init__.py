"""What a guarded model draws with: which code and tensors, whether they changed, and a sample of all weights."""
