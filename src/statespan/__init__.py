"""Sequence models with a hidden state."""
