"""Finished answers: rows in, grounding scores out."""
