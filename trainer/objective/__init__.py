"""The end-to-end losses of erasure and preservation, and the gradient that each bit gets from them."""
