"""Maps of features in two dimensions: PCA, which keeps distances, and t-SNE, which keeps neighbours."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int, Shaped

from tljax.data.splits import hashed_seed, stratified_split
from tljax.features.similarity import unit_rows

# t-SNE takes three times the perplexity for the neighbours of a row: van der Maaten 2014, JMLR 15, section 4.1.
_NEIGHBOURS_PER_PERPLEXITY = 3


def sample_rows(labels: Shaped[np.ndarray, " n"], limit: int, seed: int) -> Int[np.ndarray, " m"]:
    """Draw at most `limit` rows with the proportions of the labels, in random order; all rows where they are no more.

    Args:
        labels: of all rows.
        limit: rows that a map can show, or that t-SNE has the time for.
        seed: the run's seed.
    """
    if limit < 1:
        raise ValueError(f"the limit of rows is {limit}, wanted at least 1")
    rows = np.arange(len(labels))
    if limit < len(labels):
        rows = stratified_split(labels, hashed_seed(seed, "rows of the maps"), limit / len(labels), 0.0).test
    # In random order, so that no class is drawn on top of the others.
    return np.random.default_rng(hashed_seed(seed, "order of the maps")).permutation(rows)


def pca_map(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "2"]]:
    """Project rows on the two directions in which they vary most.

    The sign of a direction means nothing, so it is fixed: the largest weight of each is positive.

    Returns:
        The coordinates, and the shares of the variance that they explain.

    Raises:
        ValueError: there are fewer than two rows or columns, or all rows are equal.
    """
    if min(features.shape) < 2:
        raise ValueError(f"features are {features.shape}, wanted at least 2 rows and 2 columns for a map")
    rows = features.astype(np.float64)
    centred = rows - rows.mean(axis=0, keepdims=True)
    if np.abs(centred).max() <= np.finfo(np.float32).eps * np.abs(rows).max():
        raise ValueError(f"all {len(rows)} rows of features are equal, so there is nothing to map")
    # Of the smaller of the two products, whose eigenvectors are the left or the right singular vectors of the rows.
    is_tall = len(rows) > rows.shape[1]
    product = centred.T @ centred if is_tall else centred @ centred.T
    last = len(product) - 1
    squares, vectors = scipy.linalg.eigh(product, subset_by_index=[last - 1, last])
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    points = centred @ vectors if is_tall else vectors * np.sqrt(squares)[None]
    directions = vectors if is_tall else centred.T @ vectors
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return points * np.where(largest < 0, -1, 1), squares / np.trace(product)


def check_tsne(num_rows: int, perplexity: int | float) -> None:
    """Find out what would stop `tsne_map`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: the perplexity asks for more neighbours than there are rows, or for none.
    """
    _import_tsne()
    if perplexity < 1 or num_rows <= _NEIGHBOURS_PER_PERPLEXITY * perplexity:
        most = (num_rows - 1) / _NEIGHBOURS_PER_PERPLEXITY
        raise ValueError(
            f"t-SNE of {num_rows} rows at perplexity {perplexity:g}: a row needs three times the perplexity of others, "
            f"so perplexity can be 1 to {most:.1f}; lower it, map more images, or leave t-SNE out"
        )


def tsne_map(features: Float[np.ndarray, "n d"], *, perplexity: int | float) -> Float[np.ndarray, "n 2"]:
    """Place rows so that those of high cosine come to lie side by side; distances between groups mean little.

    It starts from `pca_map`, so nothing in it is random, and runs in one thread, so sums are always of one order.

    Args:
        features: rows; their lengths do not count.
        perplexity: about how many neighbours a row has.

    Raises:
        ImportError, ValueError: see `check_tsne` and `pca_map`.

    Source:
        van der Maaten and Hinton 2008, JMLR 9; Barnes-Hut as in van der Maaten 2014, JMLR 15, in scikit-learn. The
        start from PCA is that of Kobak and Berens 2019, Nature Communications 10, 5416.
    """
    check_tsne(len(features), perplexity)
    # It comes with scikit-learn.
    from threadpoolctl import threadpool_limits

    rows = unit_rows(features.astype(np.float32))
    start, _ = pca_map(rows)
    # Of this size because larger starts hold groups apart: Kobak and Berens 2019, and scikit-learn's own.
    start = (start / start[:, 0].std() * 1e-4).astype(np.float32)
    with threadpool_limits(limits=1):
        return _import_tsne()(perplexity=perplexity, init=start).fit_transform(rows).astype(np.float64)


def _import_tsne() -> Any:
    # An extra, and slow to import.
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            f"no scikit-learn for t-SNE ({error}): pip install 'tljax[maps]' or pip install scikit-learn"
        ) from error
    return TSNE
