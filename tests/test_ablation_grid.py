import ml_collections
import pytest

from tljax.ablation.grid import Study, apply_fields, cells_of, product, when, zipped

BASE = {"seed": 0, "schedule": {"learning_rate": 0.1}, "loss": {"name": "softmax"}, "mix": {"mixup_alpha": 0.2}}
KNOWN = {"seed": [], "schedule": ["learning_rate", "name"], "loss": ["name", "label_smoothing"], "mix": ["mixup_alpha"]}


def study(**changes):
    settings = {
        "slug": "rates", "title": "Rates", "question": "Which?", "task": "finetune", "config": BASE,
        "metric": "accuracy",
        "factors": {"schedule.learning_rate": [0.1, 0.2], "loss.label_smoothing": [0.0, 0.1]}, "seeds": [0, 1],
    }  # fmt: skip
    return Study(**{**settings, **changes})


def test_lists_of_cells_are_crossed_joined_and_kept():
    a, b = [{"a": 1}, {"a": 2}], [{"b": 3}, {"b": 4}]
    assert product(a, b) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert zipped(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert when(product(a, b), lambda cell: cell["a"] + cell["b"] == 5) == [{"a": 1, "b": 4}, {"a": 2, "b": 3}]
    with pytest.raises(ValueError, match="lists of 2, 1 values cannot be joined"):
        zipped(a, [{"b": 3}])
    with pytest.raises(ValueError, match="a: set twice in one cell"):
        product(a, a)


def test_a_study_is_its_factors_crossed_but_for_those_that_go_together():
    rate, smoothing, alpha = "schedule.learning_rate", "loss.label_smoothing", "mix.mixup_alpha"
    factors = {rate: [0.1, 0.2], alpha: [1, 2, 3], smoothing: [0.0, 0.5]}
    found = cells_of(study(factors=factors, zips=[(rate, smoothing)], where=lambda cell: cell[alpha] != 2))
    assert [tuple(cell[name] for name in factors) for cell in found] == [
        (0.1, 1, 0.0), (0.1, 3, 0.0), (0.2, 1, 0.5), (0.2, 3, 0.5),
    ]  # fmt: skip


def test_a_label_sets_several_fields():
    levels = {"slow": {"schedule.learning_rate": 0.1}, "fast": {"schedule.learning_rate": 1.0, "mix": None}}
    found = study(factors={"speed": levels}, baseline={"speed": "slow"})
    assert cells_of(found) == [{"speed": "slow"}, {"speed": "fast"}]
    assert found.fields({"speed": "fast"}) == {"schedule.learning_rate": 1.0, "mix": None}
    changed = apply_fields(BASE, found.fields({"speed": "fast"}), KNOWN)
    assert changed == {"seed": 0, "schedule": {"learning_rate": 1.0}, "loss": {"name": "softmax"}}
    assert BASE["schedule"] == {"learning_rate": 0.1}


def test_the_base_config_may_be_that_of_a_config_file():
    assert study(config=lambda: ml_collections.ConfigDict(BASE)).base() == BASE
    given = {"seed": 0, "loss": {}}
    study(config=given).base()["loss"]["name"] = "x"
    assert given == {"seed": 0, "loss": {}}


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("schedule.learning_rte", "no config field 'schedule.learning_rte' .did you mean 'learning_rate'"),
        ("shedule.name", "no config field 'shedule.name': the base config has no 'shedule' .did you mean 'schedule'"),
        ("losss", "no config field 'losss' .did you mean 'loss'"),
        ("schedule.learning_rate.body", "'schedule.learning_rate' is a float there, with no fields"),
    ],
)
def test_a_field_that_there_is_not_is_refused(field, message):
    with pytest.raises(ValueError, match=message):
        apply_fields(BASE, {field: 1}, KNOWN)


def test_a_field_that_the_base_leaves_to_its_default_can_be_set():
    assert apply_fields(BASE, {"loss.label_smoothing": 0.3}, KNOWN)["loss"] == {
        "name": "softmax",
        "label_smoothing": 0.3,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "My Study"}, "slug is 'My Study'"),
        ({"factors": {}}, "no factors"),
        ({"factors": {"loss.name": []}}, "loss.name has the values none"),
        ({"factors": {"loss.name": ["a", "a"]}}, "each once"),
        ({"seeds": [1, 1]}, "seeds are .1, 1."),
        ({"factors": {"seed": [1, 2]}}, "seed sets 'seed', and so does seeds"),
        ({"factors": {"a": {"x": {"loss.name": 1}}, "loss.name": [2]}}, "loss.name sets 'loss.name', and so does a"),
        ({"zips": [("loss.label_smoothing", "loss.nam")]}, "zips: no factor 'loss.nam'"),
        ({"baseline": {"schedule.learning_rate": 0.1}}, "is no cell of the grid"),
        ({"where": lambda cell: False}, "`where` keeps none"),
        (
            {"factors": {"loss.name": [1], "mix.mixup_alpha": [1, 2]}, "zips": [("loss.name", "mix.mixup_alpha")]},
            "different numbers of values",
        ),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)
