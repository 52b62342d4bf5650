"""What the records of a run do not let one say of its model."""

from collections.abc import Iterator, Mapping
from typing import Any

from tljax.calibration import SOFTMAX

# Fewer test images of a class than these: its recall is uncertain by about a tenth and more, one standard error.
_FEW = 25


def limits(found: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each limitation that follows from the records.

    Args:
        found: see `card.gather`.
    """
    return [*_of_the_test(found), *_of_the_split(found), *_of_the_probabilities(found), *_of_the_licences(found)]


def _of_the_test(found: Mapping[str, Any]) -> Iterator[str]:
    record = found["record"]
    if record is None:
        yield "The records hold no test: nothing is known of how good it is."
        return
    if "accuracy" in found["intervals"]:
        low, high = found["intervals"]["accuracy"]
        yield (
            f"{record['n_test']} test images leave the accuracy uncertain between {low:.3f} and {high:.3f}; smaller "
            "differences to other models say nothing."
        )
    else:
        yield f"Tested on {record['n_test']} images, without intervals."
    yield "One run with one seed on one split: what another seed or split would give is not in its records."
    counts = _test_counts(found)
    few = [f"{name} ({count})" for name, count in zip(found["class_names"], counts, strict=False) if count < _FEW]
    if few:
        shown = ", ".join(few[:10]) + (f" and {len(few) - 10} more" if len(few) > 10 else "")
        yield f"Fewer than {_FEW} test images have the class: {shown}."


def _test_counts(found: Mapping[str, Any]) -> list[int]:
    if found["classes"] is not None:
        return [row["num_images"] for row in found["classes"]]
    return [row["num_images"] for row in found["record"]["by_class"].values()]


def _of_the_split(found: Mapping[str, Any]) -> Iterator[str]:
    split = found["config"]["split"]
    if split.get("held_out"):
        kinds = _kinds(split["held_out"])
        yield f"It was tested on images with {kinds} alone, and trained and calibrated on none of these."
    if split.get("only"):
        yield f"It has seen images with {_kinds(split['only'])} alone, in training, calibration and test."
    if split["kind"] == "grouped":
        yield f"Images with one {split['groups']!r} are in one part of the split; nothing else was kept together."
    else:
        yield (
            "The split kept no groups together: images of one object, place or day may be in training and test, which "
            "makes results look better than they are on new ones."
        )
    if found["facts"] is not None and not found["facts"]["parts"]["val"]["num_images"]:
        yield "There were no validation images, so nothing could be chosen or calibrated on them."


def _kinds(wanted: Mapping[str, Any]) -> str:
    return " and ".join(f"{name} {', '.join(map(str, values))}" for name, values in wanted.items())


def _of_the_probabilities(found: Mapping[str, Any]) -> Iterator[str]:
    calibration = found["calibration"]
    if calibration is None or calibration["temperature"] is None:
        yield "Its probabilities are not calibrated."
    else:
        yield "It was calibrated on images like those it was trained on; on others its probabilities may be off."
    if calibration is not None and calibration["kind"] == SOFTMAX:
        yield "It gives one of its classes to every image, also to one of none of them."


def _of_the_licences(found: Mapping[str, Any]) -> Iterator[str]:
    if found["facts"] is None:
        yield "The licences of weights and images are not recorded."
        return
    for what, licence in (("weights", found["weights"]["licence"]), ("images", found["facts"]["data"]["licence"])):
        if licence in ("not stated", "see the source", "see the model card"):
            yield f"The licence of the {what} is not in the records: {licence}."
