"""`python -m md_perception.evaluation`: see command.py."""

import sys

from md_perception.evaluation.command import main

sys.exit(main())
