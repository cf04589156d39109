"""Features that reach a decoder beside its input embeddings, one kind a file."""
