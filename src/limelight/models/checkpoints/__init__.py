"""Checkpoints in layouts that transformers cannot read."""
