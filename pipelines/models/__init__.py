"""The model families: what each checkpoint is, and the adapter that runs it."""
