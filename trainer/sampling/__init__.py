"""The rectified-flow sampler as a differentiable function, equal to the pipelines of diffusers."""
