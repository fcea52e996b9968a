"""How one clip is shared among ranks, and which combinations run."""
