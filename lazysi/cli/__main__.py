"""`python -m lazysi.cli`."""

from lazysi.cli import app

if __name__ == "__main__":
    app()
