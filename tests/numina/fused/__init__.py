"""Tests of the fused reading."""
