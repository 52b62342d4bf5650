"""BatchNorm that follows the batches, or keeps what it has: see README.md. `run.py` pretrains, and runs this after it.

tljax sweep experiments/frozen_batch_norm/sweep.py --max_parallel=2
"""

from pathlib import Path

from tljax.ablation.grid import Study

# The ResNet-18 of configs/pretrain.py, from monocrystalline cells, as `run.py` exports it.
MODEL = "runs/frozen_batch_norm/pretrained"
# Sized for two CPU cores. On a GPU: pretrained at 224 px, all 923 images (None), 20 epochs, and "stem": that freezes
# nothing, so "cache" is then "never".
TRAIN_LIMIT = 200
EPOCHS = 2
FREEZE = "layer3_00"
BATCH_SIZES = (4, 32)
# Eight can give p = 0.008 in a test of paired signs, which is below 0.05 after Holm in a family of four.
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
NORMS = r".*norm\d*/(scale|bias)"


def get_config() -> dict:
    """Return what all runs share."""
    return dict(
        seed=0,
        cache_dir="runs/cache",
        model=dict(name=f"file:{MODEL}"),
        data=dict(name="elpv", root="runs/cache/data", task="binary"),
        split=dict(
            kind="stratified",
            repeat=0,
            test_fraction=0.25,
            val_fraction=0.15,
            strata=("label", "cell_type"),
            only=dict(cell_type=("poly",)),
            train_limit=TRAIN_LIMIT,
        ),
        evaluate=dict(),
        groups=dict(freeze=FREEZE, rates=dict(body=1.0, head=10.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=3e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(
            epochs=EPOCHS, batch_size=32, cache="always", checkpoint_every=500, evaluate_every=500, drift_images=0
        ),
    )


def get_study() -> Study:
    """Return the study.

    Raises:
        FileNotFoundError: nothing has been pretrained.
    """
    if not Path(MODEL).is_dir():
        raise FileNotFoundError(
            f"no folder {MODEL}, the pretrained net; `python experiments/frozen_batch_norm/run.py` makes it, and runs "
            "this after it"
        )
    frozen = {"finetune.freeze_statistics": True}
    groups = get_config()["groups"]
    return Study(
        slug="frozen_batch_norm",
        title="Frozen BatchNorm or not",
        question="Should BatchNorm of trained stages follow the batches, or keep what it has from pretraining?",
        task="finetune",
        config=get_config(),
        factors={
            "BatchNorm": {
                "follows the batches": {"finetune.freeze_statistics": False},
                "statistics frozen": frozen,
                "statistics, scale and bias frozen": {**frozen, "groups": {**groups, "rules": [(NORMS, "frozen")]}},
            },
            "finetune.batch_size": BATCH_SIZES,
        },
        seeds=SEEDS,
        metric="accuracy",
    )
