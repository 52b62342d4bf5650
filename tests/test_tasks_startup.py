"""Steps that are compiled ahead of time: for the arrays that come, once, and with the same results."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_runs import CLASSES, make_config, metrics_of, remembering, write_model, write_pictures
from tljax import devices
from tljax.devices import fetch, place
from tljax.finetune.devices import put_inputs
from tljax.finetune.phases import Phase
from tljax.tasks import ahead, finetune, startup
from tljax.tasks.ahead import AheadOfTime, compile_step, differences
from tljax.tasks.feed import open_once
from tljax.tasks.inputs import open_inputs, open_split
from tljax.tasks.relative import plan_run
from tljax.tasks.training import make_phases, mesh_of, step_arguments

PREFIX = {"dtype": "float16", "batch_size": 8}
PHASES = [
    {"epochs": 1, "groups": {"freeze": "head"}, "image_size": 8},
    {"epochs": 1, "groups": {"freeze": "block_01", "rates": {"body": 0.5}}},
]
STARTS = {
    "images": {},
    "stored": {"finetune": {"cache": "always"}, "prefix": PREFIX},
    "shares": {"loss": {"name": "softmax"}},
    "phases": {
        "execution": {"fsdp": 2},
        "phases": PHASES,
        "finetune": {"average_decay": 0.9},
        "lora": {"rules": "query_value", "rank": 2, "alpha": 3.0},
        "penalties": {"l2_sp": {"strength": 0.1, "head_strength": 0.01}},
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("startup")
    write_pictures(folder / "pictures")
    files = sorted(path.relative_to(folder) for path in (folder / "pictures").rglob("*.png"))
    lines = [f"{file},{index / 100},{1 - index / 100}" for index, file in enumerate(files)]
    (folder / "shares.csv").write_text("\n".join(["file,dark,light", *lines]))
    write_model(folder / "vit")
    return folder


def test_differences_name_what_does_not_fit():
    shapes = {"x": jax.ShapeDtypeStruct((2, 3), "float32"), "n": jax.ShapeDtypeStruct((2,), "int32")}
    # 64 bits are halved on their way to the devices.
    assert differences({"x": np.zeros((2, 3), np.float32), "n": np.zeros(2, np.int64)}, shapes) == []
    assert differences({"x": np.zeros((2, 4), np.float16), "more": np.zeros(1)}, shapes) == [
        "['more'] besides",
        "['x'] is float16[2, 4], not float32[2, 3]",
        "no ['n']",
    ]


def count_traces():
    traces = []

    def step(state, batch):
        traces.append(batch["x"].shape)
        return state + jnp.sum(batch["x"]), {"mean": jnp.mean(batch["x"])}

    return jax.jit(step, donate_argnums=0), traces


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


def test_a_step_is_traced_once_ahead_of_its_calls():
    step, traces = count_traces()
    early = AheadOfTime(step, lambda: (shape(), {"x": shape(3)}))
    early.begin()
    compiled = early.wait()
    assert traces == [(3,)]
    assert compiled.lower_s > 0
    state = jnp.float32(1)
    for value in (1.0, 2.0):
        state, metrics = early(state, {"x": np.full(3, value, np.float32)})
    assert traces == [(3,)]
    assert (float(state), float(metrics["mean"])) == (10.0, 2.0)


def test_other_arrays_than_foreseen_are_no_error(caplog):
    step, traces = count_traces()
    early = AheadOfTime(step, lambda: (shape(), {"x": shape(3)}))
    state, _ = early(jnp.float32(1), {"x": np.ones(4, np.float32)})
    assert float(state) == 5.0
    assert traces == [(3,), (4,)]
    assert "compiled again: [1]['x'] is float32[4], not float32[3]" in caplog.text


def test_what_compiling_raises_reaches_the_caller():
    def step(x):
        raise ValueError("no such thing")

    early = AheadOfTime(jax.jit(step), lambda: (shape(3),))
    early.begin()
    with pytest.raises(ValueError, match="no such thing"):
        early(np.ones(3, np.float32))


def test_a_compiled_step_says_whether_it_was_read(tmp_path):
    with remembering(tmp_path):
        seen = [compile_step(jax.jit(lambda x: jnp.sin(x) * 7), (shape(5),)).is_from_cache for _ in range(2)]
    assert seen == [False, True]


@pytest.mark.parametrize("name", STARTS)
def test_shapes_foretell_the_arrays_of_a_run(root, tmp_path, name, monkeypatch):
    # Let params of a small net lie on several devices.
    monkeypatch.setattr(devices, "MIN_SHARDED_SIZE", 1)
    config = make_config(root, **STARTS[name])
    if name == "shares":
        config["data"] = {
            "name": "table", "root": str(root), "path": "shares.csv", "file_column": "file", "kind": "soft",
            "label_columns": CLASSES,
        }  # fmt: skip
    inputs = open_inputs(config)
    split = open_split(config, inputs.source, tmp_path)
    plans, _ = plan_run(config, inputs, split)
    feeds = open_once(plans)
    phases = make_phases(plans, feeds, split, 0)
    state, batch = None, {}
    for index, phase in enumerate(phases):
        mesh = mesh_of(config)
        state = place(phase.enter(fetch(state)), mesh)
        fixed, batch = phase.open_fixed(state), put_inputs(next(phase.batches(0)), mesh)
        foretold = step_arguments(plans, phases, index)
        assert differences((state, fixed, batch), foretold) == []
        for leaf, shape in zip(jax.tree.leaves((state, fixed)), jax.tree.leaves(foretold[:2]), strict=True):
            assert leaf.sharding == shape.sharding
    # The shapes are worth comparing.
    assert len(jax.tree.leaves(batch)) == 2


@pytest.mark.parametrize(("done", "begun"), [(0, [0]), (3, [0]), (4, [1]), (6, [1]), (7, [])])
def test_the_step_that_is_next_is_compiled_first(tmp_path, monkeypatch, done, begun):
    """Of two phases of 4 and 3 steps, from a checkpoint of so many steps."""
    monkeypatch.setattr(startup, "last_saved", lambda directory: done)
    seen = []
    monkeypatch.setattr(AheadOfTime, "begin", lambda self: seen.append(self.jitted))
    never: Any = lambda *_: None  # noqa: E731
    steps: list[Any] = [lambda *_: None for _ in range(2)]
    phases = [
        Phase(
            num_steps=num_steps, enter=never, open_fixed=never, train_step=step, batches=never, evaluate=None,
            frozen_hash=never, learning_rate=never,
        )
        for num_steps, step in zip((4, 3), steps, strict=True)
    ]  # fmt: skip
    startup.Startup(tmp_path / "startup.json", {}).watch(phases, [never, never], tmp_path)
    assert seen == [steps[index] for index in begun]


def test_a_run_reports_its_starts_and_compiles_each_step_once(root, tmp_path, monkeypatch, caplog):
    compiled = []

    def count(step, arguments):
        compiled.append(arguments[2]["image"].shape)
        return compile_step(step, arguments)

    monkeypatch.setattr(ahead, "compile_step", count)
    config = make_config(root, **{**STARTS["phases"], "finetune": {"epochs": 1, "checkpoint_every": 2}})
    finetune.run(config, tmp_path / "whole")
    assert [shape[1] for shape in compiled] == [8, 16]
    (start,) = json.loads((tmp_path / "whole" / "startup.json").read_text())
    assert set(start["parts_s"]) == {
        "open data", "load weights", "plan", "stored prefix", "state to the devices", "hash of what is frozen",
        "first batch", "wait for the compiled step", "first step",
    }  # fmt: skip
    assert start["total_s"] == pytest.approx(sum(start["parts_s"].values()))
    assert "compiled again" not in caplog.text
    stop_in_second_phase(config, tmp_path / "halved", monkeypatch)
    compiled.clear()
    finetune.run(config, tmp_path / "halved")
    # The first phase is over.
    assert [shape[1] for shape in compiled] == [16]
    assert len(json.loads((tmp_path / "halved" / "startup.json").read_text())) == 2
    assert metrics_of(tmp_path / "halved") == metrics_of(tmp_path / "whole")


def stop_in_second_phase(config, workdir, monkeypatch):
    class StoppedError(Exception):
        pass

    make = finetune.make_phases

    def make_stopping(*arguments):
        first, second = make(*arguments)

        def end(start_step):
            for step, batch in enumerate(second.batches(start_step)):
                if step == 3:
                    raise StoppedError
                yield batch

        return [first, dataclasses.replace(second, batches=end)]

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "make_phases", make_stopping)
        with pytest.raises(StoppedError):
            finetune.run(config, workdir)
