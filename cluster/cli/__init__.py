"""The `numina` command: its verbs, and what a terminal shows."""
