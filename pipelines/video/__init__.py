"""From latents to frames, and from frames to mp4 and back."""
