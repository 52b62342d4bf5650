"""A ResNet-18 from random params on your own images: a start for `tljax finetune` where published weights do not fit.

    tljax finetune --config=configs/pretrain.py --config.data.root=DIR --workdir=runs/pretrain
    tljax export runs/pretrain --format=hf --to=runs/pretrained

DIR holds one folder per class with its JPEG or PNG files. What a later run takes is the folder that was exported:
--config.model.name=file:runs/pretrained. With --config=configs/pretrain.py:mono or :poly it is trained on one type of
the solar cells of ELPV, a few minutes on two CPU cores, and never sees the other: experiments/frozen_batch_norm
fine-tunes it on that one.
"""

import ml_collections

# Types of the solar cells.
KINDS = ("mono", "poly")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    if arg not in ("", *KINDS):
        raise ValueError(f"configs/pretrain.py:{arg}, wanted a type of cells, {' or '.join(KINDS)}, or no argument")
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"

    # The last blocks see 2 x 2 positions at 56 px; at 224 px, 7 x 7, a step takes 16 times as long.
    config.model = dict(name="random:resnet18", image_size=56)
    config.data = dict(name="folder", root="")
    split = dict(kind="stratified", repeat=0, test_fraction=0.15, val_fraction=0.15)
    config.split = dict(**split, strata=("label",))
    config.evaluate = dict()
    if arg:
        config.data = dict(name="elpv", root="runs/cache/data", task="binary")
        config.split = dict(**split, strata=("label", "cell_type"), only=dict(cell_type=(arg,)))

    config.groups = dict(freeze=0)
    # Crops, and of the 8 flips and quarter turns as many as leave an image what it is: all of a solar cell, the image
    # and its mirror image, 2, of most photographs.
    config.augment = dict(views=8 if arg else 2, crop_scale=(0.5, 1.0))
    # The rate is for batches of 32, as is the length of the warm-up; a larger batch bears a higher rate.
    config.optimizer = dict(
        name="sgd",
        weight_decay=5e-4,
        clip_norm=1.0,
        arguments=dict(momentum=0.9, nesterov=True),
    )
    config.schedule = dict(name="cosine", learning_rate=0.05, warmup_fraction=0.1)
    config.loss = dict(name="softmax", label_smoothing=0.0)
    config.finetune = dict(
        epochs=12,
        batch_size=32,
        cache="never",
        checkpoint_every=100,
        evaluate_every=100,
        keep="best",
        # Drift is from where a run begins, here from nothing.
        drift_images=0,
    )
    # For `tljax lr_find`.
    config.lr_find = dict(lowest=1e-4, highest=3.0, num_steps=60)
    return config
