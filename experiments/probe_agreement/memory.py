"""Find the nearest neighbours of many rows among themselves, and print the memory that the process took at most.

    .venv/bin/python experiments/probe_agreement/memory.py

200,000 rows of 384 against themselves are 31 TFLOPs. `--num_queries` asks fewer; what grows with it is
the answer, 8 bytes a neighbour. Ends with exit status 1 above 2 GB.
"""

import argparse
import resource
import sys
import time

import numpy as np

from tljax.features.neighbours import nearest

MOST_BYTES = 2e9


def main() -> int:
    """Search and measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_rows", type=int, default=200_000)
    parser.add_argument("--num_queries", type=int, default=200_000)
    arguments = parser.parse_args()
    rows = np.random.default_rng(0).standard_normal((arguments.num_rows, 384), np.float32)
    before, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    _, positions = nearest(rows, rows[: arguments.num_queries], 20)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # Every row is nearest to itself.
    found = (positions[:, 0] == np.arange(len(positions))).all()
    print(
        f"{len(positions)} queries against {len(rows)} rows: {time.process_time() - cpu:.0f} CPU seconds, "
        f"at most {most / 1e9:.2f} GB, {before / 1e9:.2f} GB of them before; each finds itself: {found}"
    )
    return int(most > MOST_BYTES or not found)


if __name__ == "__main__":
    sys.exit(main())
