"""`python -m wristaugment` is the same as the `wristaugment` command."""

import sys

from .jobs.cli import main

sys.exit(main())
