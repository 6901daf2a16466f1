"""Run the `delta` command as `python -m delta_pipelines`, with or without an install."""

import sys

from delta_pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
