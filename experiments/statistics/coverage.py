"""How often a 95% interval of a mean over seeds holds the true mean, by simulation.

    python experiments/statistics/coverage.py        # a few minutes on two CPU cores

Of each distribution that many sets of n values are drawn, and an interval is made of each set.
"""

import argparse
import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tljax.ablation.intervals import LEAST_FOR_BOOTSTRAP, bca_interval, percentile_interval
from tljax.metrics import mean_interval

HERE = Path(__file__).parent
SIZES = (3, 5, 8, 10, 20)
# {name: (how to draw, the true mean)}: differences, accuracies near 1, those of 100 images, a long tail.
DISTRIBUTIONS: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "normal": (lambda generator, size: generator.normal(0, 1, size), 0.0),
    "beta(20, 2)": (lambda generator, size: generator.beta(20, 2, size), 20 / 22),
    "binomial(100, 0.95)": (lambda generator, size: generator.binomial(100, 0.95, size) / 100, 0.95),
    "exponential": (lambda generator, size: generator.exponential(1, size), 1.0),
}
METHODS: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {
    "t": lambda values: mean_interval(values.tolist())[2:],
    "percentile": lambda values: percentile_interval(values, is_expanded=False),
    "BCa": lambda values: bca_interval(values, is_expanded=False),
    "expanded BCa": bca_interval,
}


def coverage(distribution: str, n: int, method: str, num_sets: int) -> tuple[float, float]:
    """Return how often the interval holds the true mean, and its mean width."""
    draw, mean = DISTRIBUTIONS[distribution]
    sets = draw(np.random.default_rng([n, list(DISTRIBUTIONS).index(distribution)]), (num_sets, n))
    ends = np.array([METHODS[method](values) for values in sets])
    return float(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean()), float(np.ptp(ends, axis=1).mean())


def main() -> None:
    """Write coverage.csv, or print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_sets", type=int, default=2000)
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["distribution", "n", "method", "is_used", "coverage", "width"])
    for distribution in DISTRIBUTIONS:
        for n in SIZES:
            used = "t" if n < LEAST_FOR_BOOTSTRAP else "expanded BCa"
            for method in METHODS:
                share, width = coverage(distribution, n, method, options.num_sets)
                writer.writerow([distribution, n, method, method == used, f"{share:.3f}", f"{width:.4g}"])
    if options.print:
        print(file.getvalue(), end="")
    else:
        (HERE / "coverage.csv").write_text(file.getvalue())


if __name__ == "__main__":
    main()
