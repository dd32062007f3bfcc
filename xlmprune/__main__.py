"""`python -m xlmprune`."""

import os
import sys

# Python puts the current folder before its own libraries. A bundle has a folder `triton`, which is no Python package.
if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():  # noqa: PTH109
    del sys.path[0]

from xlmprune.cli import main

main()
