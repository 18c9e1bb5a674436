"""Losses, one file each: the function, its module, and the terms that it returns."""
