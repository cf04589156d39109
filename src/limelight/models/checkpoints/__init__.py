"""Checkpoints in layouts that transformers does not read itself."""
