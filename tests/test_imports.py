"""Imports point down only, so that any layer can be read, and used, without those above it."""

import ast
from pathlib import Path

import tljax

ROOT = Path(tljax.__file__).parent
# From the top. Modules of one layer may import each other.
LAYERS = (
    ("cli",),
    ("commands", "bench", "launching", "sweeping", "together", "replaying"),
    ("tasks",),
    ("ablation",),
    ("finetune",),
    ("features",),
    ("weights", "data", "metrics", "calibration"),
    ("models", "resizing", "preprocess", "devices"),
    ("rundir", "preemption"),
    ("processes", "environment"),
    ("process_groups",),
    ("arguments", "paths", "plain"),
)
HEIGHT = {name: -position for position, layer in enumerate(LAYERS) for name in layer}
FORBIDDEN = {"tensorflow", "torch", "torchvision", "configs", "experiments", "tests"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            # `from tljax import rundir` names a module after the import.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_down():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert files
    wrong = []
    for path in files:
        layer = path.relative_to(ROOT).with_suffix("").parts[0]
        assert layer in HEIGHT, f"{path}: the layer of {layer!r} is not in LAYERS"
        for name in imported(path):
            top, *rest = name.split(".")
            if top in FORBIDDEN or (top == "tljax" and rest and HEIGHT.get(rest[0], 1) > HEIGHT[layer]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)
