"""`python -m md_perception.inference`: see md_perception.inference.command."""

import sys

from md_perception.inference.command import main

if __name__ == "__main__":
    sys.exit(main())
