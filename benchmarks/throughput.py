"""Throughput and latency of Loire against the limits of the machine.

    python benchmarks/throughput.py                          # W2 and W3 on the default model
    python benchmarks/throughput.py DIR --load W1
    python benchmarks/throughput.py --workload FILE.json     # {"name", "variants": [...]}

The same as `loire bench`: the limits first, then what was achieved, JSON last.
"""

import sys

from loire.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
