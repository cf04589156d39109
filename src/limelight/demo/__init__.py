"""The shipped miniature models: their worlds (scenes), their questions and their held-out examples."""
