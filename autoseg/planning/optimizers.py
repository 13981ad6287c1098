"""The optimizer that each architecture is trained with, unless the user chooses another."""

from autoseg.schema import ArchitectureName, OptimizerName, OptimizerPlan

RECIPES: dict[OptimizerName, OptimizerPlan] = {
    # nnU-Net v2's recipe (nnUNetTrainer), which its convolutional networks were tuned with.
    "sgd": OptimizerPlan(name="sgd", learning_rate=0.01, momentum=0.99, weight_decay=3e-5, gradient_clip=12.0),
    # nnU-Net v2's recipe for transformers (its Primus trainers; there the warm-up is 50 of 1000 epochs).
    "adamw": OptimizerPlan(
        name="adamw", learning_rate=3e-4, momentum=0.9, second_momentum=0.98, weight_decay=0.05, gradient_clip=1.0,
        warmup_share=0.05,
    ),
}  # fmt: skip

OPTIMIZERS: dict[ArchitectureName, OptimizerPlan] = {
    "plain": RECIPES["sgd"],
    "resenc": RECIPES["sgd"],
    "hybrid": RECIPES["adamw"],
    "unetr": RECIPES["adamw"],
    # As published: UNETR++ is trained with nnU-Net's SGD.
    "unetr-pp": RECIPES["sgd"],
    "swin-unetr": RECIPES["adamw"],
    "mednext": RECIPES["adamw"],
}
