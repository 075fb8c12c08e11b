"""`python -m loire` is `loire`."""

import sys

from loire.cli.main import main

sys.exit(main())
