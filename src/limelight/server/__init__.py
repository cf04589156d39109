"""An OpenAI-compatible endpoint over one model: chat completions with a decoding strategy, and each token's grounding."""
