import numpy as np
import pytest

from tljax.data.sampling import ExampleStream, epoch_indices, epoch_views
from tljax.data.splits import hashed_seed

# Of the 20 examples, 13 are trained on: 9 of class 0, 3 of class 1, 1 of class 3, none of class 2.
LABELS = np.array([0] * 11 + [1] * 5 + [2] * 2 + [3] * 2, np.int32)
INDICES = np.array([0, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 15, 18])


def epochs(sampling, count=30, seed=3, indices=INDICES):
    return np.stack([epoch_indices(indices, LABELS, seed, epoch, sampling=sampling) for epoch in range(count)])


def test_uniform_epochs_are_the_permutations_they_always_were():
    for epoch, drawn in enumerate(epochs("uniform")):
        generator = np.random.default_rng(hashed_seed(3, f"order of epoch {epoch}"))
        np.testing.assert_array_equal(drawn, generator.permutation(INDICES))


def test_balanced_epochs_show_each_class_equally_often():
    drawn = epochs("class_balanced")
    assert drawn.shape == (30, len(INDICES))
    assert set(drawn.flat) <= set(INDICES)
    counts = np.stack([np.bincount(LABELS[epoch], minlength=4) for epoch in drawn])
    assert not counts[:, 2].any()
    # 13 places for 3 classes: one of them, another from epoch to epoch, has 5.
    assert {tuple(sorted(row)) for row in counts[:, [0, 1, 3]].tolist()} == {(4, 4, 5)}
    assert (counts[:, [0, 1, 3]] == 5).any(axis=0).all()


def test_members_come_again_only_when_all_have_been():
    for epoch in epochs("class_balanced"):
        counts = np.bincount(epoch, minlength=20)[INDICES]
        for label in (0, 1, 3):
            of_class = counts[LABELS[INDICES] == label]
            assert np.ptp(of_class) <= 1
    # Over the epochs no member is left out, and none preferred: 30 epochs of 4 or 5 of the 9 examples of class 0.
    shown = np.bincount(epochs("class_balanced", 300).flat, minlength=20)[INDICES[:9]]
    assert np.abs(shown - shown.mean()).max() < 5 * np.sqrt(shown.mean())


def test_every_place_of_a_balanced_epoch_can_hold_every_class():
    drawn = LABELS[epochs("class_balanced", 100)]
    for place in drawn.T:
        assert set(place.tolist()) == {0, 1, 3}


def test_more_classes_than_examples():
    drawn = epochs("class_balanced", indices=np.array([0, 11, 16, 18]))
    np.testing.assert_array_equal(np.sort(drawn), np.tile([0, 11, 16, 18], (30, 1)))


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_epochs_are_functions_of_seed_and_number(sampling):
    first = epochs(sampling)
    np.testing.assert_array_equal(first, epochs(sampling))
    assert len(np.unique(np.concatenate([first, epochs(sampling, seed=4)]), axis=0)) == 60


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_a_stream_is_the_epochs_in_a_row_at_any_place(sampling):
    stream = ExampleStream(indices=INDICES, labels=LABELS, seed=3, sampling=sampling, views=4)
    whole = epochs(sampling).reshape(-1)
    views = np.concatenate([epoch_views(len(INDICES), 3, epoch, views=4) for epoch in range(30)])
    # More epochs at once than are remembered.
    for places in np.random.default_rng(0).permutation(len(whole)).reshape(5, -1):
        index, view = stream.take(places)
        np.testing.assert_array_equal(index, whole[places])
        np.testing.assert_array_equal(view, views[places])


def test_an_unknown_sampling_is_named():
    with pytest.raises(ValueError, match=r"no sampling 'class_balance' \(did you mean 'class_balanced'\?\)"):
        epochs("class_balance")
