"""Features that reach a decoder besides its input embeddings, one kind per file."""
