"""Reading images, audio and video: from bytes to validated media, before any model is involved."""
