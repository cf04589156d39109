"""Scorers: pure functions from records to metrics, independent of loaders and runner."""
