"""limelight: training-free grounding of Hugging Face multimodal LLMs."""
