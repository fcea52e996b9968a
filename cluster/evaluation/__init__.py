"""Verdicts of judges, what they decide, and the summaries made of them."""
