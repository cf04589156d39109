"""Published training-free hallucination detectors, each computed from one forward over prompt and answer."""
