"""Published training-free detectors of invented words, each computed from one forward over prompt and answer."""
