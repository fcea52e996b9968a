"""What a run needs of a machine, and what is here: small checks, each in a process of its own with a time limit."""
