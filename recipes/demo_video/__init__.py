"""The video miniature: a LLaVA-OneVision that watches films of eight small frames."""
