"""Qwen-VL-Chat (Bai et al., 2023, arXiv 2308.12966): its published checkpoint, built from transformers' parts."""
