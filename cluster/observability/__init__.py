"""Logs, metrics, progress, status and traces."""
