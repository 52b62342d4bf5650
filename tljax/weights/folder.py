"""What the config files beside a checkpoint say: those of transformers, and those of timm."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tljax.paths import did_you_mean
from tljax.preprocess import Preprocess
from tljax.rundir import read_json
from tljax.weights import configs_vit, processors
from tljax.weights.stored import Checkpoint
from tljax.weights.tables import resnet, resnetv2, vgg, vit_timm

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"

# From the values of a transformers config, and the keys of the weights, to an architecture.
MODEL_TYPES: dict[str, Callable[[Mapping[str, Any], Any], Any]] = {
    **dict.fromkeys(configs_vit.MODEL_TYPES, configs_vit.from_hugging_face),
    "resnet": lambda config, keys: resnet.from_hugging_face(config),
    "bit": lambda config, keys: resnetv2.from_hugging_face(config),
}


@dataclass(frozen=True, kw_only=True)
class FolderInfo:
    """What the files beside the weights say; None where they do not. An architecture may be a name of the registry."""

    architecture: Any = None
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None


def describe_folder(folder: Path, checkpoint: Checkpoint) -> FolderInfo:
    """Read the config files of a folder, if there are any.

    Raises:
        ValueError: a model type, an architecture or one of its switches is not supported, or a file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return FolderInfo()
    config = read_json(path)
    try:
        if "model_type" in config:
            return _hugging_face(folder, config, checkpoint)
        if "architecture" in config:
            return _timm(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be understood ({type(error).__name__}: {error}); download it again") from error
    raise ValueError(f"{path} names no 'model_type' (transformers) and no 'architecture' (timm); remove or replace it")


def _hugging_face(folder: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> FolderInfo:
    model_type = config["model_type"]
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder / CONFIG} says model_type {model_type!r}{did_you_mean(str(model_type), MODEL_TYPES)}; "
            f"supported: {', '.join(MODEL_TYPES)}"
        )
    # transformers says at import that torch is missing, which here is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoConfig

    full = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    names = config.get("id2label")
    return FolderInfo(
        architecture=MODEL_TYPES[model_type](full, checkpoint.arrays),
        preprocess=processors.read_preprocessor(folder) if (folder / PROCESSOR).is_file() else None,
        class_names=tuple(names[key] for key in sorted(names, key=int)) if names else None,
    )


def _timm(config: Mapping[str, Any]) -> FolderInfo:
    name, cfg = config["architecture"], config["pretrained_cfg"]
    settings = {
        **({"global_pool": cfg["global_pool"]} if cfg.get("global_pool") else {}),
        **config.get("model_args", {}),
    }
    labels = config.get("label_names") or cfg.get("label_names")
    if isinstance(labels, Mapping):
        labels = [labels[key] for key in sorted(labels, key=int)]
    return FolderInfo(
        architecture=_timm_architecture(name, settings),
        preprocess=processors.from_pretrained_cfg(cfg),
        class_names=tuple(labels) if labels else None,
    )


def _timm_architecture(name: str, settings: Mapping[str, Any]) -> Any:
    """Return the architecture of a name of timm's: ours of the registry, or a config."""
    named = {**resnet.TIMM_NAMES, **resnetv2.TIMM_NAMES, **vgg.TIMM_NAMES}
    if name not in named:
        return vit_timm.timm_architecture(name, settings)
    # Channels and classes are counted from the weights; the others do not change what is computed.
    known = {"in_chans", "num_classes", "drop_rate", "drop_path_rate"}
    changed = {
        key: value for key, value in settings.items() if key not in known and (key, value) != ("global_pool", "avg")
    }
    if changed:
        raise ValueError(f"timm's {name!r} with model_args {changed} is not supported; without them it is")
    return named[name]
