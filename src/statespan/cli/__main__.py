"""`python -m statespan.cli`."""

from statespan.cli import main

main()
