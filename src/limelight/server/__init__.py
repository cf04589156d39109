"""An OpenAI-compatible server for one model: chat completions with decoding strategies and per-token grounding."""
