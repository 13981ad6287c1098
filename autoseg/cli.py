"""The commands by name; each is imported only when it runs, so that `autoseg --help` needs no torch."""

from cyclopts import App

from autoseg import __version__

HELP = """Self-configuring medical image segmentation.

The whole story on your own data:

  autoseg plan DATASET                 measure the dataset, decide, preprocess

  autoseg pretrain-init                optional: first weights from the training images, without labels

  autoseg train                        train fold 0; validation masks and scores at the end

  autoseg predict -i IMAGES -o MASKS   masks on the original grids

  autoseg evaluate -p MASKS -r LABELS  Dice, surface Dice, HD95, volumes

New here? `autoseg demo` shows all four on a phantom in a few minutes.
"""

COMMANDS = {
    "plan": "Measure a dataset, decide spacing, patch, batch and network, and preprocess it.",
    "pretrain-init": "Learn first weights from a fold's training images, without labels.",
    "prompts": "Show what a dataset's labels mean in words, and write their sentences into a file to edit.",
    "train": "Train folds of a planned dataset; predict and score their validation cases at the end.",
    "predict": "Segment a folder of images; masks land on the images' own grids.",
    "find-best": "Compare trained models and pairs of them by cross-validation; the best becomes what `predict` takes.",
    "import-nnunet": "Bring models that nnU-Net v2 trained into a run folder.",
    "evaluate": "Score masks against reference labels: Dice, surface Dice, HD95, volumes.",
    "demo": "Make a phantom dataset and run plan, train, predict and evaluate on it.",
}

app = App(name="autoseg", help=HELP, version=__version__, help_format="markdown")
for _name, _help in COMMANDS.items():
    _module = _name.replace("-", "_")
    app.command(f"autoseg.commands.{_module}:{_module}", name=_name, help=_help)
