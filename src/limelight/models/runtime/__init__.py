"""Running a model in parts: capture of the decoder call, attention with hooks, one cached stream, locks, wrappers."""
