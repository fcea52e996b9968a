"""One job: its config, strategies and clips with their keys, and what of it is left to do."""
