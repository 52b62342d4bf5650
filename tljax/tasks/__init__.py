"""The tasks of the command line: each is `run(config, workdir) -> dict[str, float]`."""

from tljax.tasks import explain, extract, finetune, lr_find, probe, select, soup, transfer

# Tasks that write nothing, and need no run directory.
WITHOUT_WORKDIR = (explain.NAME,)
# Tasks whose work is in run directories inside of theirs.
WITH_PARTS = (transfer.NAME,)

TASKS = {
    extract.NAME: (extract.run, "run images to chosen stages once and store the features"),
    select.NAME: (select.run, "compare models and stages on your data before training, and say which to take"),
    probe.NAME: (probe.run, "fit simple classifiers on stored features of several depths"),
    finetune.NAME: (finetune.run, "retrain late stages and a new head, early stages frozen"),
    explain.NAME: (explain.run, "print what a config would train and what a step costs, before training"),
    lr_find.NAME: (lr_find.run, "raise the learning rate step by step, and suggest one"),
    soup.NAME: (soup.run, "average finished runs, or go along the line between two (WiSE-FT, model soups)"),
    transfer.NAME: (transfer.run, "extract, probe and fine-tune on the same splits, and write the report"),
}
