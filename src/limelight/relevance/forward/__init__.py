"""Relevance forward: a decoder run with tangents beside its values, and what that needs."""
