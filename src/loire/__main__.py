"""Where `loire` and `python -m loire` begin."""

import sys

from loire.base.python_process import leave_working_directory

leave_working_directory()

from loire.cli.main import main  # noqa: E402  its imports must not come from the working directory

if __name__ == "__main__":
    sys.exit(main())
