"""Simple classifiers on stored features, each chosen on held-out rows and then fitted on all that may be used."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tljax.features.choosing import Fitted, ProbeData, mean_over_folds
from tljax.features.labels import count_right, log_loss
from tljax.features.logistic import choose_strength, fit_path, warn_at_an_end
from tljax.features.mlp import make_grid, train_grid
from tljax.features.nearest_mean import fit_class_means
from tljax.features.neighbours import Neighbours, nearest, votes
from tljax.features.ridge import RidgePath, fit_ridge_path


def fit_logistic(
    data: ProbeData, *, strengths: Sequence[float], class_weighting: str | None = None, beta: float | None = None
) -> Fitted:
    """Fit logistic regression with the L2 strength of least held-out log-loss.

    Args:
        data: features and labels.
        strengths: to choose from; see `features.logistic`.
        class_weighting: None, or a kind of `class_weights`, by the rows that are fitted.
        beta: of `class_weights`.

    Returns:
        The classifier, and {"strength"}.
    """
    strength = choose_strength(
        data.features, data.labels, data.num_classes, data.folds, strengths, class_weighting=class_weighting, beta=beta
    )
    # The stronger ones before it are its warm start.
    path = [value for value in sorted(strengths, reverse=True) if value >= strength]
    weights = data.weights(data.train, data.train, class_weighting, beta)
    fitted = fit_path(*data.of(data.train), data.num_classes, path, weights=weights)
    return Fitted(fitted.at(-1), {"strength": strength})


def fit_ridge(
    data: ProbeData,
    *,
    strengths: Sequence[float],
    use_leave_one_out: bool,
    class_weighting: str | None = None,
    beta: float | None = None,
) -> Fitted:
    """Fit ridge regression with the L2 strength of least held-out squared error; of equals the strongest.

    Args:
        data: features and labels.
        strengths: to choose from; see `features.ridge`.
        use_leave_one_out: hold out each row to be fitted by itself, in place of the folds. For rows that are not
            alike in groups only: one of the group stays in.
        class_weighting: None, or a kind of `class_weights`, by the rows that are fitted.
        beta: of `class_weights`.

    Returns:
        The classifier, and {"strength"}.
    """
    strengths = sorted(strengths, reverse=True)

    def fit(train: np.ndarray, tried: Sequence[float]) -> RidgePath:
        weights = data.weights(train, train, class_weighting, beta)
        return fit_ridge_path(*data.of(train), data.num_classes, tried, weights=weights)

    def losses(train: np.ndarray, held_out: np.ndarray) -> Iterator[float]:
        return fit(train, strengths).errors(*data.of(held_out), data.weights(train, held_out, class_weighting, beta))

    path = fit(data.train, strengths)
    errors = path.leave_one_out_errors if use_leave_one_out else mean_over_folds(data.folds, losses)
    best = int(errors.argmin())
    warn_at_an_end(best, strengths)
    return Fitted(path.at(best), {"strength": strengths[best]})


def fit_knn(data: ProbeData, *, neighbours: Sequence[int], temperature: float) -> Fitted:
    """Let the nearest training rows by cosine vote, with the number of them that is right most often held out.

    Args:
        data: features and labels.
        neighbours: numbers to choose from; of equal ones the first.
        temperature: see `neighbours.votes`.

    Returns:
        The classifier, and {"neighbours"}.

    Raises:
        ValueError: a number of neighbours that some training rows cannot give.
    """
    smallest = min(len(rows) for rows in [*(train for train, _ in data.folds), data.train])
    if not 1 <= min(neighbours) <= max(neighbours) <= smallest:
        raise ValueError(f"neighbours are {list(neighbours)}, wanted 1 to {smallest}, the training rows")

    def misses(train: np.ndarray, held_out: np.ndarray) -> Iterator[float]:
        known, labels = data.of(train)
        asked, wanted = data.of(held_out)
        cosines, positions = nearest(known, asked, max(neighbours))
        for count in neighbours:
            # The nearest few are the first of the nearest many.
            near = cosines[:, :count], positions[:, :count]
            yield -count_right(votes(*near, labels, data.num_classes, temperature), wanted)

    best = neighbours[int(mean_over_folds(data.folds, misses).argmin())]
    known, labels = data.of(data.train)
    classifier = Neighbours(
        features=known, labels=labels, num_classes=data.num_classes, count=best, temperature=temperature
    )
    return Fitted(classifier, {"neighbours": best})


def fit_nearest_mean(data: ProbeData, *, metric: str, temperatures: Sequence[float]) -> Fitted:
    """Take the nearest class mean, with the temperature of least held-out log-loss; of equals the first.

    Args:
        data: features and classes.
        metric: see `nearest_mean.fit_class_means`.
        temperatures: to choose from; they change probabilities, and not predictions.

    Returns:
        The classifier, and {"temperature"}.
    """

    def losses(train: np.ndarray, held_out: np.ndarray) -> Iterator[float]:
        asked, wanted = data.of(held_out)
        for temperature in temperatures:
            fitted = fit_class_means(*data.of(train), data.num_classes, metric=metric, temperature=temperature)
            yield log_loss(fitted.predict_proba(asked), wanted)

    best = temperatures[int(mean_over_folds(data.folds, losses).argmin())]
    classifier = fit_class_means(*data.of(data.train), data.num_classes, metric=metric, temperature=best)
    return Fitted(classifier, {"temperature": best})


def fit_mlp(
    data: ProbeData,
    *,
    widths: Sequence[int],
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    num_steps: int,
    num_stops: int,
    class_weighting: str | None = None,
    beta: float | None = None,
) -> Fitted:
    """Fit a network of one hidden layer, all that it is trained with of least held-out log-loss.

    Args:
        data: features and labels; features are standardised on the rows that are fitted.
        widths: of the hidden layer, to choose from; all of the grid is trained at once.
        learning_rates: to choose from.
        weight_decays: to choose from; AdamW's, multiplied with the learning rate.
        num_steps: full-batch steps of AdamW.
        num_stops: equally spaced steps to choose from, `num_steps` the last.
        class_weighting: None, or a kind of `class_weights`, by the rows that are fitted.
        beta: of `class_weights`.

    Returns:
        The classifier, and {"width", "learning_rate", "weight_decay", "num_steps"}.

    Raises:
        ValueError: `num_steps` is not a multiple of `num_stops`.
    """
    if num_stops < 1 or num_steps % num_stops:
        raise ValueError(f"num_steps is {num_steps}, wanted a multiple of num_stops, which is {num_stops}")
    recipes = make_grid(widths, learning_rates, weight_decays)
    stops = [num_steps // num_stops * (position + 1) for position in range(num_stops)]

    def losses(train: np.ndarray, held_out: np.ndarray) -> Iterator[float]:
        asked, wanted = data.of(held_out)
        weights = data.weights(train, train, class_weighting, beta)
        held_weights = data.weights(train, held_out, class_weighting, beta)
        of_stops = train_grid(*data.of(train), data.num_classes, recipes, stops=stops, seed=data.seed, weights=weights)
        for networks in zip(*of_stops, strict=True):
            for network in networks:
                yield log_loss(network.predict_proba(asked), wanted, held_weights)

    best, stop = divmod(int(mean_over_folds(data.folds, losses).argmin()), num_stops)
    weights = data.weights(data.train, data.train, class_weighting, beta)
    ((network,),) = train_grid(
        *data.of(data.train),
        data.num_classes,
        recipes[best : best + 1],
        stops=stops[stop : stop + 1],
        seed=data.seed,
        weights=weights,
    )
    return Fitted(network, {**recipes[best]._asdict(), "num_steps": stops[stop]})


PROBES: dict[str, Callable[..., Fitted]] = {
    "logistic": fit_logistic,
    "ridge": fit_ridge,
    "knn": fit_knn,
    "nearest_mean": fit_nearest_mean,
    "mlp": fit_mlp,
}
