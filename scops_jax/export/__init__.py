"""Packs a run's network into one file."""
