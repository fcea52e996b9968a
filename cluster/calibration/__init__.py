"""`numina calibrate`: a race of the method's settings on one's own model, prompts and judge."""
