"""`python -m inheritune`: the same as the console script."""

from inheritune.cli import main_entry

if __name__ == "__main__":
    main_entry()
