"""Models: adapters on diffusers, attention processors, two-phase denoising, engines, video files, judges."""
