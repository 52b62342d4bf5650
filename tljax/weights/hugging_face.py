"""Model folders in the format of Hugging Face transformers: config, preprocessor and weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tljax.models import VitConfig
from tljax.paths import did_you_mean
from tljax.preprocess import Preprocess
from tljax.rundir import read_json, write_bytes, write_json
from tljax.weights.read import read_folder, weight_files
from tljax.weights.rules import Table, invert
from tljax.weights.tables.hugging_face import DINOV2

TABLES = {"dinov2": DINOV2}

_SETTINGS = ("config.json", "preprocessor_config.json")

# PIL's numbers for the two filters, as preprocessor_config.json has them.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """What a model folder says, its weights not yet renamed."""

    architecture: VitConfig
    table: Table
    preprocess: Preprocess
    arrays: dict[str, np.ndarray]


def read_model_folder(folder: Path) -> ModelFolder:
    """Read config.json, preprocessor_config.json and the safetensors of a folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model type or one of its switches is not supported, or a file is damaged.
    """
    for name in _SETTINGS:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: a Hugging Face model folder is needed, with its weights")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in TABLES:
        raise ValueError(
            f"{folder / 'config.json'} says model_type {model_type!r}{did_you_mean(str(model_type), TABLES)}; "
            f"supported: {', '.join(TABLES)}"
        )
    arrays = read_folder(folder)
    return ModelFolder(
        architecture=_architecture(folder, arrays),
        table=TABLES[model_type],
        preprocess=_preprocess(folder),
        arrays=arrays,
    )


def missing_files(folder: Path) -> list[str]:
    """List the files that `read_model_folder` would miss."""
    return [name for name in (*_SETTINGS, *weight_files(folder)) if not (folder / name).is_file()]


def _architecture(folder: Path, arrays: Mapping[str, np.ndarray]) -> VitConfig:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    wanted = {"hidden_act": "gelu", "use_swiglu_ffn": False, "qkv_bias": True, "num_channels": 3}
    wrong = [f"{name} = {getattr(config, name)!r}" for name, value in wanted.items() if getattr(config, name) != value]
    if wrong:
        raise ValueError(f"{folder / 'config.json'}: not supported: {', '.join(wrong)}; wanted {wanted}")
    classifier = arrays.get("classifier.bias")
    return VitConfig(
        depth=config.num_hidden_layers,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
        mlp_ratio=config.mlp_ratio,
        norm_epsilon=config.layer_norm_eps,
        use_layer_scale=True,
        pooling="cls_mean",
        num_classes=0 if classifier is None else len(classifier),
    )


def _preprocess(folder: Path) -> Preprocess:
    """Read the preprocessor as transformers does, defaults of its class included."""
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    path = folder / "preprocessor_config.json"
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if not getattr(processor, name, True)]
    if off:
        raise ValueError(f"{path}: {' and '.join(off)} = false is not supported; such images are prepared elsewhere")
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    if processor.resample not in _INTERPOLATIONS:
        raise ValueError(f"{path}: resample {processor.resample!r} is not supported; wanted {_INTERPOLATIONS}")
    if abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ValueError(f"{path}: rescale_factor {processor.rescale_factor!r} is not supported; wanted 1/255")
    if "shortest_edge" in size and processor.do_center_crop and crop["height"] == crop["width"]:
        resize, target = size["shortest_edge"], crop["height"]
    elif "height" in size and size["height"] == size["width"] and not getattr(processor, "do_center_crop", False):
        resize, target = None, size["height"]
    else:
        raise ValueError(f"{path}: size {size} with crop {crop} is not supported; wanted a square")
    return Preprocess(
        size=target,
        resize=resize,
        interpolation=_INTERPOLATIONS[int(processor.resample)],
        mean=_per_channel(path, processor.image_mean),
        std=_per_channel(path, processor.image_std),
    )


def _per_channel(path: Path, value: float | Sequence[float]) -> tuple[float, float, float]:
    """Return a number for each channel; transformers takes one for all of them too."""
    numbers = np.atleast_1d(np.asarray(value, np.float64))
    if numbers.shape not in ((1,), (3,)):
        raise ValueError(f"{path}: image_mean and image_std want one number or three, got {value}")
    red, green, blue = np.broadcast_to(numbers, (3,)).tolist()
    return red, green, blue


def write_model_folder(
    folder: Path, architecture: VitConfig, params: Mapping[str, Any], preprocess: Preprocess
) -> None:
    """Write DINOv2 params as a folder that transformers and `tljax.load("file:DIR")` read.

    The position embeddings are written at the net's own image size. The mask token, which no net of ours
    has, is written as zeros.

    Raises:
        ValueError: the net is no DINOv2: it has no layer scale.
    """
    if not architecture.use_layer_scale:
        raise ValueError("the DINOv2 layout needs layer scale in every block, and this net has none")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = invert(params, DINOV2)
    arrays["embeddings.mask_token"] = np.zeros((1, architecture.width), np.float32)
    prefix = "dinov2." if architecture.num_classes else ""
    arrays = {key if key.startswith("classifier.") else prefix + key: array for key, array in arrays.items()}
    config = {
        "model_type": "dinov2",
        "architectures": ["Dinov2ForImageClassification" if architecture.num_classes else "Dinov2Model"],
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.num_heads,
        "mlp_ratio": architecture.mlp_ratio,
        "patch_size": architecture.patch_size,
        "image_size": architecture.image_size,
        "layer_norm_eps": architecture.norm_epsilon,
        "num_labels": architecture.num_classes or 2,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", _preprocessor_config(preprocess))
    # Last: a folder with weights is complete.
    write_bytes(folder / "model.safetensors", save(arrays, metadata={"format": "pt"}))


def _preprocessor_config(preprocess: Preprocess) -> dict[str, Any]:
    square = {"height": preprocess.size, "width": preprocess.size}
    codes = {name: code for code, name in _INTERPOLATIONS.items()}
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": square if preprocess.resize is None else {"shortest_edge": preprocess.resize},
        "resample": codes[preprocess.interpolation],
        "do_center_crop": preprocess.resize is not None,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
