"""Where `loire` and `python -m loire` begin."""

import sys

from loire.base.python_process import leave_working_directory

leave_working_directory()


def main() -> int:
    """The command line of this process; its exit status."""
    try:
        # These must not come from the working directory.
        from loire.base.foreign_threads import end_process
        from loire.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return end_process(run())


if __name__ == "__main__":
    sys.exit(main())
