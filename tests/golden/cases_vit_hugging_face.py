"""Vision Transformers of Hugging Face: torch models of transformers 5, Flax models of transformers 4."""

import json
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.golden.record import Case, as_is

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
MLP = {"intermediate_size": 40}
# No number of patches along a side is that along the other.
IMAGE_SIZE = (12, 20)
OURS = {"depth": 2, "width": 24, "num_heads": 3, "patch_size": 4, "image_size": IMAGE_SIZE, "mlp_width": 40}


def _published(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the keys that transformers writes, which are those of published files; its models use others inside."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}


def _load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Load as a user would, from a folder."""
    from safetensors.numpy import save_file

    model = getattr(model, "inner", model)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(dict(arrays), f"{folder}/model.safetensors", metadata={"format": "pt"})
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    model.load_state_dict(loaded.state_dict())


def _config(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict(), default=str))


def _taps(
    depth: int, embed: str, block: str, norm: str | None, **others: tuple[str, Callable[[Any], Any]]
) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    blocks = {f"block_{index:02d}": (f"{block}.{index}", as_is) for index in range(depth)}
    norms = {"norm": (norm, as_is)} if norm else {}
    return {"embed": (embed, as_is), **blocks, **norms, **others}


def _first_token(output: Any) -> Any:
    return output[:, 0]


def _case(
    layout: str, model: Any, taps: Mapping[str, Any], architecture: Mapping[str, Any], image_size: Any = IMAGE_SIZE
) -> Case:
    inner = getattr(model, "inner", model)
    return Case(
        layout=layout,
        family="vit",
        architecture={**OURS, **architecture},
        image_size=image_size,
        model=model,
        taps=taps,
        shapes=_published(inner),
        dtypes={},
        load=_load,
        config=_config(inner.config),
    )


def vit() -> Case:
    """More than ten blocks, so that their order as text is not their order."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        **{**SIZES, "num_hidden_layers": 11}, **MLP, image_size=IMAGE_SIZE, num_labels=5, hidden_act="gelu_new"
    )  # fmt: skip
    model = ViTForImageClassification(config)
    taps = _taps(11, "vit.embeddings", "vit.layers", "vit.layernorm")
    ours = {"depth": 11, "num_classes": 5, "norm_epsilon": 1e-12, "activation": "gelu_tanh"}
    return _case("hf-vit", model, taps, ours)


def vit_backbone() -> Case:
    """With the pooler that classifiers do not use; grey images."""
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(**SIZES, **MLP, image_size=IMAGE_SIZE, num_channels=1))
    taps = _taps(2, "embeddings", "layers", "layernorm", head=("layernorm", _first_token))
    return _case("hf-vit", model, taps, {"norm_epsilon": 1e-12, "in_channels": 1})


def mae() -> Case:
    """All patches, in their order."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **SIZES, **MLP, image_size=16, mask_ratio=0.0, decoder_hidden_size=8, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=8,
    )  # fmt: skip

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ViTMAEForPreTraining(config)

        def forward(self, images: Any) -> Any:
            noise = torch.arange(16.0).repeat(len(images), 1)
            return self.inner.vit(images, noise=noise)

    prefix = "inner.vit."
    taps = _taps(2, f"{prefix}embeddings", f"{prefix}layers", f"{prefix}layernorm")
    taps["head"] = (f"{prefix}layernorm", _first_token)
    return _case("hf-vit", Ordered(), taps, {"image_size": 16, "norm_epsilon": 1e-12}, (16, 16))


def deit() -> Case:
    from transformers import DeiTConfig, DeiTForImageClassification

    model = DeiTForImageClassification(DeiTConfig(**SIZES, **MLP, image_size=IMAGE_SIZE, num_labels=7))
    taps = _taps(2, "deit.embeddings", "deit.layers", "deit.layernorm")
    ours = {"has_distillation_token": True, "num_classes": 7, "norm_epsilon": 1e-12}
    return _case("hf-deit", model, taps, ours)


def deit_with_teacher() -> Case:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES, **MLP, image_size=IMAGE_SIZE, num_labels=7))
    taps = _taps(2, "deit.embeddings", "deit.layers", "deit.layernorm")
    ours = {
        "has_distillation_token": True, "num_classes": 7, "norm_epsilon": 1e-12, "pooling": "cls_distillation",
    }  # fmt: skip
    return _case("hf-deit", model, taps, ours)


# transformers gives DINOv2 a square of positions whatever the image.
DINOV2 = {"image_size": 12, "use_layer_scale": True, "pooling": "cls_mean", "mlp_width": None}


def dinov2() -> Case:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    model = Dinov2ForImageClassification(Dinov2Config(**SIZES, image_size=12, num_labels=6))
    taps = _taps(2, "dinov2.embeddings", "dinov2.encoder.layer", "dinov2.layernorm")
    return _case("hf-dinov2", model, taps, {**DINOV2, "num_classes": 6}, (12, 12))


def dinov2_giant() -> Case:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(Dinov2Config(**SIZES, image_size=12, use_swiglu_ffn=True, mlp_ratio=3))

    def pooled(output: Any) -> Any:
        return torch.cat([output[:, 0], output[:, 1:].mean(1)], 1)

    taps = _taps(2, "embeddings", "encoder.layer", "layernorm", head=("layernorm", pooled))
    return _case("hf-dinov2", model, taps, {**DINOV2, "activation": "swiglu", "mlp_width": 48}, (12, 12))


def dinov2_registers() -> Case:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    config = Dinov2WithRegistersConfig(**SIZES, image_size=12, num_labels=6, num_register_tokens=3)
    prefix = "dinov2_with_registers."
    taps = _taps(2, f"{prefix}embeddings", f"{prefix}encoder.layer", f"{prefix}layernorm")
    ours = {**DINOV2, "num_classes": 6, "num_registers": 3}
    return _case("hf-dinov2", Dinov2WithRegistersForImageClassification(config), taps, ours, (12, 12))


CLIP = {"image_size": 12, "has_patch_bias": False, "has_embed_norm": True, "norm_epsilon": 1e-5}


def clip() -> Case:
    """The whole model of two towers."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20,
    }  # fmt: skip
    config = CLIPConfig(vision_config={**SIZES, **MLP, "image_size": 12}, text_config=text, projection_dim=9)

    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CLIPModel(config)

        def forward(self, images: Any) -> Any:
            return self.inner.visual_projection(self.inner.vision_model(images).pooler_output)

    prefix = "inner.vision_model."
    taps = _taps(2, f"{prefix}pre_layrnorm", f"{prefix}encoder.layers", None)
    ours = {**CLIP, "activation": "quick_gelu", "num_classes": 9, "has_head_bias": False}
    return _case("hf-clip", Tower(), taps, ours, (12, 12))


def clip_projected() -> Case:
    """LAION's models have the usual GELU."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**SIZES, **MLP, image_size=12, projection_dim=9, hidden_act="gelu")
    taps = _taps(2, "vision_model.pre_layrnorm", "vision_model.encoder.layers", None)
    taps["head"] = ("visual_projection", as_is)
    ours = {**CLIP, "num_classes": 9, "has_head_bias": False}
    return _case("hf-clip", CLIPVisionModelWithProjection(config), taps, ours, (12, 12))


def clip_backbone() -> Case:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**SIZES, **MLP, image_size=12))
    taps = _taps(2, "pre_layrnorm", "encoder.layers", None, head=("post_layernorm", as_is))
    return _case("hf-clip", model, taps, {**CLIP, "activation": "quick_gelu"}, (12, 12))


SIGLIP = {"image_size": 12, "has_class_token": False, "activation": "gelu_tanh"}


def siglip() -> Case:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, **MLP, image_size=12))
    taps = _taps(2, "embeddings", "encoder.layers", "post_layernorm", pool=("head", as_is), head=("head", as_is))
    return _case("hf-siglip", model, taps, {**SIGLIP, "pooling": "attention"}, (12, 12))


def siglip_classifier() -> Case:
    from transformers import SiglipConfig, SiglipForImageClassification

    text = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20,
    }  # fmt: skip
    config = SiglipConfig(vision_config={**SIZES, **MLP, "image_size": 12}, text_config=text, num_labels=4)
    prefix = "vision_model."
    taps = _taps(2, f"{prefix}embeddings", f"{prefix}encoder.layers", f"{prefix}post_layernorm")
    ours = {**SIGLIP, "pooling": "mean", "num_classes": 4}
    return _case("hf-siglip", SiglipForImageClassification(config), taps, ours, (12, 12))


def _flax(layout: str, model: Any, architecture: Mapping[str, Any], image_size: Any = IMAGE_SIZE) -> Case:
    """Record a Flax model of transformers 4, which has no torch beside it: its hidden states and its output."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    flat = flatten_dict(model.params)
    shapes = {"/".join(key): value.shape for key, value in flat.items()}

    def outputs(arrays: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
        params = unflatten_dict({tuple(key.split("/")): value for key, value in arrays.items()})
        result = model(images.transpose(0, 3, 1, 2), params=params, output_hidden_states=True)  # b h w c -> b c h w
        names = ["embed", *(f"block_{index:02d}" for index in range(model.config.num_hidden_layers))]
        states = dict(zip(names, map(np.asarray, result.hidden_states), strict=True))
        head = result.logits if hasattr(result, "logits") else result.pooler_output
        return {**states, "head": np.asarray(head)}

    return Case(
        layout=layout,
        family="vit",
        architecture={**OURS, **architecture},
        image_size=image_size,
        shapes=shapes,
        outputs=outputs,
        config=_config(model.config),
    )


def flax_vit() -> Case:
    from transformers import FlaxViTForImageClassification, ViTConfig  # pyright: ignore[reportAttributeAccessIssue]

    config = ViTConfig(**SIZES, **MLP, image_size=12, num_labels=5)
    ours = {"image_size": 12, "num_classes": 5, "norm_epsilon": 1e-12}
    return _flax("hf-flax-vit", FlaxViTForImageClassification(config), ours, (12, 12))


def flax_dinov2() -> Case:
    from transformers import Dinov2Config, FlaxDinov2ForImageClassification  # pyright: ignore[reportAttributeAccessIssue]

    config = Dinov2Config(**SIZES, image_size=12, num_labels=5, use_swiglu_ffn=True)
    ours = {**DINOV2, "num_classes": 5, "activation": "swiglu", "mlp_width": 64}
    return _flax("hf-flax-dinov2", FlaxDinov2ForImageClassification(config), ours, (12, 12))


def flax_clip() -> Case:
    from transformers import CLIPVisionConfig, FlaxCLIPVisionModel  # pyright: ignore[reportAttributeAccessIssue]

    model = FlaxCLIPVisionModel(CLIPVisionConfig(**SIZES, **MLP, image_size=12))
    return _flax("hf-flax-clip", model, {**CLIP, "activation": "quick_gelu"}, (12, 12))


CASES = {
    "vit_hf": vit,
    "vit_hf_backbone": vit_backbone,
    "vit_hf_mae": mae,
    "vit_hf_deit": deit,
    "vit_hf_deit_with_teacher": deit_with_teacher,
    "vit_hf_dinov2": dinov2,
    "vit_hf_dinov2_giant": dinov2_giant,
    "vit_hf_dinov2_registers": dinov2_registers,
    "vit_hf_clip": clip,
    "vit_hf_clip_projected": clip_projected,
    "vit_hf_clip_backbone": clip_backbone,
    "vit_hf_siglip": siglip,
    "vit_hf_siglip_classifier": siglip_classifier,
    "vit_hf_flax": flax_vit,
    "vit_hf_flax_dinov2": flax_dinov2,
    "vit_hf_flax_clip": flax_clip,
}
