"""Whole-sequence replacements of the scan, and the operations under them."""
