"""Decoding methods, one per file; each file ends in ``STRATEGIES = {name: factory}``."""
