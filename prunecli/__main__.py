"""`python -m prunecli`."""

from prunecli.cli import main

main()
