"""Figures of the rows: what they show (`figures`), and how they look."""
