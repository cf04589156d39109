"""Decoding methods, one a file; each ends in ``STRATEGIES = {name: factory}``."""
