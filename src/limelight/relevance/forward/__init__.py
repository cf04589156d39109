"""Forward-mode relevance: running a decoder with tangents beside its values."""
