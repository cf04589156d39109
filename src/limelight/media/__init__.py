"""Pictures, sound and film: bytes to checked media, before any model sees them."""
