"""The shipped miniature models: their synthetic worlds (scenes), questions and held-out examples."""
