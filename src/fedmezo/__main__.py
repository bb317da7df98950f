"""`python -m fedmezo` is the command `fedmezo`."""

import sys

from fedmezo.cli import main

sys.exit(main())
