"""What runs in Ray processes: ranks, encoders, judges, tasks, and the row they commit."""
