"""`python -m eplb` is the command `eplb`."""

from eplb.cli import main

if __name__ == "__main__":
    main()
