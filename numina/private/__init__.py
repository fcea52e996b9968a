"""Names that a library keeps to itself and that are used all the same: a module per library, and nowhere else."""
