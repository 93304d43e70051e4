"""Transformations of a Program: what a pass is, what runs passes, and the passes."""
