"""Conditional distributions: how a state starts, how it moves, what it emits."""
