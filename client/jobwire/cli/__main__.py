"""`python -m jobwire.cli`, where the script is not on the path."""

from __future__ import annotations

from jobwire.cli import main

if __name__ == "__main__":
    main()
