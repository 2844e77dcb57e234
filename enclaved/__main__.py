"""``python -m enclaved`` is the command ``enclaved``."""

from enclaved.cli import main

if __name__ == "__main__":
    main()
