"""Whole steps of pretraining: images per second of the trainer and of what others would run."""
