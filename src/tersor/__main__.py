"""`python -m tersor` is the command `tersor`."""

from __future__ import annotations

import sys

from tersor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
