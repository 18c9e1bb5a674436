"""Feeding an encoder: images per second of loaders that do the same work."""
