"""`python -m eplb.cli` is the `eplb` command."""

from eplb.cli import main

main()
