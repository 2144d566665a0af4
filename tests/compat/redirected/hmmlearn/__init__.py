"""hmmlearn's import path, bound to the drop-in: its own tests are copied beside this file and run."""
