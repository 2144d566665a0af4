"""Text: corpora, vocabularies, n-grams and tagging accuracy."""
