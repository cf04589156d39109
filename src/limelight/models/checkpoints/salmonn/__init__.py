"""SALMONN (Tang et al., 2023, arXiv 2310.13289): Whisper and BEATs, a window-level Q-Former, Vicuna with LoRA."""
