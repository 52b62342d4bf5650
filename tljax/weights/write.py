"""Back out: params in the layout of the project that published them, with the config files that it reads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array
from safetensors.numpy import save_file

from tljax.models import ARCHITECTURES
from tljax.models.resnet import ResNetConfig
from tljax.models.resnetv2 import ResNetV2Config
from tljax.models.vgg import VggConfig
from tljax.models.vit import VitConfig
from tljax.paths import did_you_mean
from tljax.preprocess import Preprocess
from tljax.rundir import replacing, write_json
from tljax.weights import configs_vit, processors
from tljax.weights.folder import CONFIG, PROCESSOR
from tljax.weights.layout import Layout
from tljax.weights.recognise import layout_named
from tljax.weights.rules import invert
from tljax.weights.tables import resnet, resnetv2, vgg, vit_npz, vit_timm

SAFETENSORS, NPZ, LABELS = "model.safetensors", "model.npz", "labels.json"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Published:
    """How a project would publish a net.

    Args:
        layout: name of the layout of its keys.
        config: content of its config.json; None for projects without one.
        prefix: before every key but those of `unprefixed`.
        unprefixed: what keys of the head begin with.
        extras: arrays that its loader wants and that we do not carry.
    """

    layout: str
    config: Mapping[str, Any] | None = None
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)


def export(
    folder: Path,
    *,
    format: str,
    architecture: Any,
    params: Mapping[str, Array | np.ndarray],
    stats: Mapping[str, Array | np.ndarray],
    preprocess: Preprocess,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a net as a folder that another project, and `tljax.load("file:DIR")`, read.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        format: "hf" (transformers), "timm", "torchvision" (the state dict, as safetensors) or "npz" (Google's).
        architecture: of the net.
        params: of the net, all of them.
        stats: of the net, all of them.
        preprocess: what the net wants done to images.
        class_names: of the head, in order.

    Raises:
        ValueError: the format is unknown, or cannot express this net; or the names are not one a class.
        OSError: the folder cannot be written; what was in it is still whole.
    """
    if class_names is not None and len(class_names) != architecture.num_classes:
        raise ValueError(f"there are {len(class_names)} class names for {architecture.num_classes} classes")
    published = _publish(format, architecture)
    arrays = _arrays(published, architecture, {**params, **stats})
    names = list(class_names) if class_names is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    if format == "npz":
        if names is not None:
            write_json(folder / LABELS, names)
        with replacing(folder / NPZ) as path, path.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (keys are names of arrays)
        return
    if published.config is not None:
        write_json(folder / CONFIG, _with_labels(format, published.config, architecture, preprocess, names))
    if format == "hf":
        write_json(folder / PROCESSOR, processors.preprocessor_config(preprocess))
    # Last: a folder with weights is complete.
    with replacing(folder / SAFETENSORS) as path:
        save_file(arrays, path, metadata={"format": "pt"})


def write_model_folder(folder: Path, architecture: Any, params: Mapping[str, Any], preprocess: Preprocess) -> None:
    """Write a net without statistics and class names as transformers does; see `export`."""
    export(folder, format="hf", architecture=architecture, params=params, stats={}, preprocess=preprocess)


def _publish(format: str, architecture: Any) -> Published:
    if format not in PUBLISHERS:
        known = ", ".join(PUBLISHERS)
        raise ValueError(f"no export format {format!r}{did_you_mean(format, PUBLISHERS)}; formats are {known}")
    families = PUBLISHERS[format]
    if type(architecture) not in families:
        can = [name for name, others in PUBLISHERS.items() if type(architecture) in others]
        raise ValueError(f"format {format!r} has no {type(architecture).__name__}; those that do: {', '.join(can)}")
    return families[type(architecture)](architecture)


def _arrays(published: Published, architecture: Any, values: Mapping[str, Any]) -> Arrays:
    plain = invert(values, layout_named(published.layout), architecture)
    arrays = {
        key if key.startswith(published.unprefixed) and published.unprefixed else published.prefix + key: array
        for key, array in {**plain, **published.extras}.items()
    }
    for key in [key for key in arrays if key.endswith(".running_mean")]:
        # torch counts the batches that a BatchNorm has seen, and asks for the count.
        arrays[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def _with_labels(
    format: str, config: Mapping[str, Any], architecture: Any, preprocess: Preprocess, names: list[str] | None
) -> dict[str, Any]:
    """Add the classes, and for timm the preprocessing, to a config."""
    config, num_classes = dict(config), architecture.num_classes
    if format == "hf":
        shown = names or ([f"LABEL_{index}" for index in range(num_classes)] if num_classes else None)
        if shown:
            config["id2label"] = {str(index): name for index, name in enumerate(shown)}
            config["label2id"] = {name: index for index, name in enumerate(shown)}
        return config
    config["num_classes"] = num_classes
    config["pretrained_cfg"] = {**config.get("pretrained_cfg", {}), **processors.pretrained_cfg(preprocess)}
    config["pretrained_cfg"]["num_classes"] = num_classes
    return {**config, "label_names": names} if names else config


def _hugging_face(layout: str, prefix: str, config: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], Published]:
    """Describe a family whose class with a classifier keeps the backbone under a prefix."""

    def publish(architecture: Any) -> Published:
        has_classes = architecture.num_classes > 0
        return Published(
            layout=layout,
            config=config(architecture),
            prefix=prefix if has_classes else "",
            unprefixed=("classifier.",),
        )

    return publish


def _hugging_face_vit(architecture: VitConfig) -> Published:
    return Published(
        layout=configs_vit.layout_for(architecture).name,
        config=configs_vit.to_hugging_face(architecture),
        prefix=configs_vit.export_prefix(architecture),
        unprefixed=configs_vit.HEAD_KEYS,
        extras=configs_vit.extra_arrays(architecture),
    )


def _timm(layout: str, classifier: str, names: Mapping[str, str]) -> Callable[[Any], Published]:
    """Describe a family whose timm names stand for architectures of the registry."""

    def publish(architecture: Any) -> Published:
        name, settings = _registered(architecture, layout_named(layout), names)
        return Published(layout=layout, config=_timm_config(name, settings, classifier))

    return publish


def _timm_vit(architecture: VitConfig) -> Published:
    name, settings = vit_timm.timm_name(architecture)
    classifier = ["head", "head_dist"] if architecture.has_distillation_token else "head"
    return Published(layout=vit_timm.TIMM.name, config=_timm_config(name, settings, classifier))


def _timm_config(name: str, settings: Mapping[str, Any], classifier: str | list[str]) -> dict[str, Any]:
    return {"architecture": name, "model_args": dict(settings), "pretrained_cfg": {"classifier": classifier}}


def _registered(architecture: Any, layout: Layout, names: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Find the name of an architecture, apart from classes and channels, and timm's arguments for those."""
    same = {"num_classes": architecture.num_classes, "in_channels": architecture.in_channels}
    known = {name: dataclasses.replace(layout.published(ARCHITECTURES[ours]), **same) for name, ours in names.items()}
    nearest = min(known, key=lambda name: len(_differences(known[name], architecture)))
    differences = _differences(known[nearest], architecture)
    if differences:
        raise ValueError(f"timm has no net like this one; the nearest, {nearest!r}, has {'; '.join(differences)}")
    return nearest, {} if architecture.in_channels == 3 else {"in_chans": architecture.in_channels}


def _differences(theirs: Any, ours: Any) -> list[str]:
    pairs = ((item.name, getattr(theirs, item.name), getattr(ours, item.name)) for item in dataclasses.fields(theirs))
    return [f"{name} {value!r} where this has {own!r}" for name, value, own in pairs if value != own]


def _torchvision(layout: str) -> Callable[[Any], Published]:
    return lambda architecture: Published(layout=layout)


def _npz_vit(architecture: VitConfig) -> Published:
    return Published(layout=vit_npz.layout_for(architecture).name)


# format -> family -> how it is published there.
PUBLISHERS: dict[str, dict[type, Callable[[Any], Published]]] = {
    "hf": {
        VitConfig: _hugging_face_vit,
        ResNetConfig: _hugging_face("hf-resnet", "resnet.", resnet.to_hugging_face),
        ResNetV2Config: _hugging_face("hf-bit", "bit.", resnetv2.to_hugging_face),
    },
    "timm": {
        VitConfig: _timm_vit,
        ResNetConfig: _timm("torchvision-resnet", "fc", resnet.TIMM_NAMES),
        ResNetV2Config: _timm("timm-resnetv2", "head.fc", resnetv2.TIMM_NAMES),
        VggConfig: _timm("timm-vgg", "head.fc", vgg.TIMM_NAMES),
    },
    "torchvision": {
        ResNetConfig: _torchvision("torchvision-resnet"),
        VggConfig: _torchvision("torchvision-vgg"),
    },
    "npz": {VitConfig: _npz_vit, ResNetV2Config: lambda architecture: Published(layout="bit-npz", prefix="resnet/")},
}
