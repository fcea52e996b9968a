"""Prompt sets: read, checked, made, imported and enhanced."""
