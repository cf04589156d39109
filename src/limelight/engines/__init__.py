"""Other engines: decoding methods inside vLLM. Nothing here imports transformers, whose version vLLM pins."""
