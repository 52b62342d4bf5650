"""Time a path of logistic regressions beside scikit-learn's, in one run on the same cores.

    .venv/bin/python experiments/logistic_path/compare.py

Half an hour on two busy CPU cores, most of it for the float64 optima, which are kept in runs/logistic_path and not
computed again. Fits that results.csv has are not run again; remove it to begin anew. Needs `tljax[test]`. Ends with
exit status 1 where an objective of tljax, or a ratio of times, is not what the README says.
"""

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tljax import rundir
from tljax.features import logistic
from tljax.features.linear import standardisation
from tljax.features.logistic import STRENGTHS, fit_path
from tljax.features.logistic_solver import solve

HERE = Path(__file__).parent
MOST_ABOVE = 1e-4
# A bound on what the reference may be above the true optimum, relative to it.
REFERENCE_BOUND = 1e-5
COLUMNS = ("problem", "round", "solver", "strength", "cpu_seconds", "wall_seconds", "above_optimum")


class Case(NamedTuple):
    """A problem, and how many times less CPU time than scikit-learn's it must take."""

    n: int
    d: int
    num_classes: int
    ratio: float


class Timed(NamedTuple):
    """A fit at one strength, and what it took."""

    cpu_seconds: float
    wall_seconds: float
    weights: np.ndarray
    intercepts: np.ndarray


CASES = {"A": Case(20_000, 384, 10, 10), "B": Case(5_000, 768, 100, 5)}


def main() -> int:
    """Run the rounds that are missing, print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--cache", type=Path, default=Path("runs/logistic_path"))
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    # scikit-learn's iterations are limited on purpose.
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    status = 0
    for name in arguments.cases:
        case = CASES[name]
        features, labels = make_data(case)
        # What both are given; so both minimise the same function.
        mean, scale = standardisation(features)
        z = ((features - mean) / scale).astype(np.float32)
        optima = find_optima(z, labels, case, arguments.cache / f"{name}.npz")
        for round_ in range(arguments.rounds):
            for solver, fit in SOLVERS.items():
                if solver == BATCH and round_ > 0:
                    continue
                done = count_rows(arguments.results, name, round_, solver)
                if done < len(STRENGTHS):
                    for position, found in enumerate(fit(z, labels, case, done), done):
                        add_row(arguments.results, (name, round_, solver), position, found, z, labels, optima)
        status |= report(name, case, read_rows(arguments.results))
    return status


def make_data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Draw features of falling variance, mixed, with part of the class in them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(case.num_classes, size=case.n)
    spread = np.arange(1, case.d + 1) ** -0.7
    centres = rng.normal(size=(case.num_classes, case.d))
    mixing, offset = rng.normal(size=(case.d, case.d)), 3 * rng.normal(size=case.d)
    noise = 2 * rng.normal(size=(case.n, case.d))
    return ((centres[labels] + noise) * spread @ mixing + offset).astype(np.float32), labels


def objective(
    z: np.ndarray, labels: np.ndarray, weights: np.ndarray, intercepts: np.ndarray, strength: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return what a fit minimises, and its gradient, in float64."""
    scores = z @ weights + intercepts
    scores -= scores.max(axis=1, keepdims=True)
    powers = np.exp(scores)
    sums = powers.sum(axis=1)
    rows = np.arange(len(labels))
    value = (np.log(sums) - scores[rows, labels]).mean() + strength / 2 * np.square(weights).sum()
    residual = powers / sums[:, None]
    residual[rows, labels] -= 1
    residual /= len(labels)
    return float(value), z.T @ residual + strength * weights, residual.sum(axis=0)


def find_optima(z: np.ndarray, labels: np.ndarray, case: Case, path: Path) -> np.ndarray:
    """Return the least objective of every strength, by scipy's L-BFGS-B in float64, or read those found before.

    It begins at the fits of tljax, to be quick; how near it ends does not hang on them.

    A fit stops where it is certain to be within `REFERENCE_BOUND`: with the intercepts at their best the objective is
    convex by at least the strength, so it is above its least value by at most |gradient|^2 / (2 strength).
    """
    found = dict(np.load(path)) if path.exists() else {}
    z = z.astype(np.float64)
    eigenvalues, basis = np.linalg.eigh(z.T @ z / len(z))
    turned, size = z @ basis, (case.d + 1, case.num_classes)
    begun = fit_path(z.astype(np.float32), labels, case.num_classes, STRENGTHS)
    for position, strength in enumerate(STRENGTHS):
        if f"value_{position}" not in found:
            # Scaled so that the curvature is near 1 in every direction.
            stretch = 1 / np.sqrt(np.append(0.1 / case.num_classes * np.maximum(eigenvalues, 0) + strength, 0.1))

            def scaled(
                params: np.ndarray, stretch: np.ndarray = stretch, strength: float = strength
            ) -> tuple[float, np.ndarray]:
                params = params.reshape(size) * stretch[:, None]
                value, slope, rest = objective(turned, labels, params[:-1], params[-1], strength)
                return value, (np.vstack([slope, rest]) * stretch[:, None]).ravel()

            weights = begun.weights[position] / begun.scale[:, None]
            intercepts = begun.intercepts[position] - begun.mean @ weights
            params, bound = np.vstack([basis.T @ weights, intercepts]) / stretch[:, None], np.inf
            for _ in range(200):
                options = {"maxiter": 10, "maxcor": 30, "ftol": 0.0, "gtol": 1e-14}
                params = minimize(scaled, params.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(size)
                solved = params * stretch[:, None]
                value, slope, _ = objective(turned, labels, solved[:-1], solved[-1], strength)
                bound = np.square(slope).sum() / (2 * strength) / value
                if bound < REFERENCE_BOUND:
                    break
            found |= {f"value_{position}": np.float64(value), f"bound_{position}": np.float64(bound)}
            path.parent.mkdir(parents=True, exist_ok=True)
            with rundir.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **found)
            print(f"optimum at strength {strength:.1e}: {value:.9f}, certain to a share of {bound:.1e}", flush=True)
    worst = max(found[f"bound_{position}"] for position in range(len(STRENGTHS)))
    print(f"optima certain to a share of {worst:.1e}")
    return np.array([found[f"value_{position}"] for position in range(len(STRENGTHS))])


def time_scikit_learn(z: np.ndarray, labels: np.ndarray, case: Case, done: int) -> Iterator[Timed]:
    """Fit one strength after the other, each from zero."""
    for strength in STRENGTHS[done:]:
        cpu, wall = time.process_time(), time.perf_counter()
        fitted = LogisticRegression(C=1 / (strength * case.n), tol=1e-4, max_iter=1000).fit(z, labels)
        yield Timed(time.process_time() - cpu, time.perf_counter() - wall, fitted.coef_.T, fitted.intercept_)


def time_path(z: np.ndarray, labels: np.ndarray, case: Case, done: int) -> Iterator[Timed]:
    """Fit the path; its time is shared out evenly."""
    cpu, wall = time.process_time(), time.perf_counter()
    path = fit_path(z, labels, case.num_classes, STRENGTHS)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    # The features are standardised already, to the last bits.
    weights = path.weights / path.scale[:, None]
    intercepts = path.intercepts - path.mean @ weights
    for fit in zip(weights[done:], intercepts[done:], strict=True):
        yield Timed(cpu / len(weights), wall / len(weights), *fit)


def time_batch(z: np.ndarray, labels: np.ndarray, case: Case, done: int) -> Iterator[Timed]:
    """Fit all strengths at once, each from zero, with the solver of the path."""
    cpu, wall = time.process_time(), time.perf_counter()
    with jax.default_matmul_precision("highest"):
        targets = np.eye(case.num_classes, dtype=np.float32)[labels]
        problem, rotation = logistic._pose(z, targets, np.full(len(z), 1 / len(z)))
        start = logistic._start(problem, False)
        at_once = jax.jit(jax.vmap(solve, in_axes=(None, None, None, 0, None)))
        params, _ = at_once(problem, start, start, jnp.asarray(STRENGTHS, jnp.float32), jnp.float32(logistic.TOLERANCE))
        weights, intercepts = np.asarray(rotation @ params[:, :-1]), np.asarray(params[:, -1])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for fit in zip(weights[done:], intercepts[done:], strict=True):
        yield Timed(cpu / len(weights), wall / len(weights), *fit)


# In the first round only: it is slow on a CPU.
BATCH = "batch"
SOLVERS = {"scikit-learn": time_scikit_learn, "path": time_path, BATCH: time_batch}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read results, if there are any."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def count_rows(path: Path, name: str, round_: int, solver: str) -> int:
    """Return how many strengths of a round of a solver are among the results."""
    wanted = (name, str(round_), solver)
    return sum((row["problem"], row["round"], row["solver"]) == wanted for row in read_rows(path))


def add_row(
    path: Path,
    what: tuple[str, int, str],
    position: int,
    timed: Timed,
    z: np.ndarray,
    labels: np.ndarray,
    optima: np.ndarray,
) -> None:
    """Add a strength of a round of a solver to the results."""
    weights, intercepts = timed.weights.astype(np.float64), timed.intercepts.astype(np.float64)
    value = objective(z.astype(np.float64), labels, weights, intercepts, STRENGTHS[position])[0]
    above = value / optima[position] - 1
    numbers = (f"{STRENGTHS[position]:.3e}", f"{timed.cpu_seconds:.3f}", f"{timed.wall_seconds:.3f}", f"{above:.1e}")
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS] if is_new else [])
        writer.writerow((*what, *numbers))


def report(name: str, case: Case, rows: list[dict[str, str]]) -> int:
    """Print the solvers of a problem side by side; return 1 where the path is not as good as it must be."""
    seconds, above = {}, {}
    for solver in SOLVERS:
        mine = [row for row in rows if row["problem"] == name and row["solver"] == solver]
        rounds = sorted({row["round"] for row in mine})
        seconds[solver] = [sum(float(row["cpu_seconds"]) for row in mine if row["round"] == one) for one in rounds]
        above[solver] = max(float(row["above_optimum"]) for row in mine)
        listed = " ".join(f"{one:.1f}" for one in seconds[solver])
        print(f"{name} {solver}: CPU seconds {listed}, at most {above[solver]:.1e} above the optimum")
    ratios = [theirs / ours for theirs, ours in zip(seconds["scikit-learn"], seconds["path"], strict=True)]
    print(f"{name} scikit-learn / path: {' '.join(f'{ratio:.1f}' for ratio in ratios)}, wanted {case.ratio} or more")
    return int(above["path"] > MOST_ABOVE or median(ratios) < case.ratio)


if __name__ == "__main__":
    sys.exit(main())
