"""`python -m xlmprune`."""

from xlmprune.cli import main

main()
