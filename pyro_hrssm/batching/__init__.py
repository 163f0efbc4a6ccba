"""Frames computed together: fast, and without an equation of the model."""
