"""Prompts rewritten so that their counts can't be missed, by rule or by a language model."""
