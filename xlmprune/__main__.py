"""The command `xlmprune`, and `python -m xlmprune`."""

import os
import sys


def main() -> None:
    """Run the command. A signal before it has begun is no internal error."""
    try:
        from xlmprune.cli import main as run

        run()
    except KeyboardInterrupt:
        print("xlmprune: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    # Python puts the current folder before its own libraries. A bundle has a folder `triton`, which is no Python package.
    if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():  # noqa: PTH109
        del sys.path[0]
    main()
