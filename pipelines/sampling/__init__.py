"""Two-phase denoising: identify, guide, and the clips that come of it."""
