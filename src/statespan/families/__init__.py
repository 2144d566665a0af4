"""Models people know by name, each a function that puts parts together; a file a family."""
