"""What `train`'s switches mean before it starts: the model's name, and the normalization that the method needs."""

import logging
from collections.abc import Collection
from typing import Literal

from autoseg.errors import UserError
from autoseg.planning.normalization import OWN_REASON, with_normalization
from autoseg.schema import ArchitectureName, ConfigurationName, Plan
from autoseg.training.settings import TrainSettings

logger = logging.getLogger("autoseg")

WITH_FIRST_BLOCK: tuple[ArchitectureName, ...] = ("plain", "resenc", "hybrid")
"""Architectures whose first block CCSDG can take apart (`autoseg.domains.style_contrast.stem_of`)."""


def normalization_for_domains(schemes: Collection[str]) -> Literal["percentile", "rank"]:
    """Under domain generalization, where the plan's normalization is neither: `rank` for CT, else `percentile`.

    Measured (`docs/generalization.md`): bSSFP → LGE percentile 68, rank 57 with GIN; CT → MR, in an earlier pilot, rank
    57 and percentile 35 with GIN.
    """
    return "rank" if "ct" in schemes else "percentile"


def refuse_unfit(architecture: ArchitectureName, settings: TrainSettings) -> None:
    """UserError for a network that the method cannot train: before a store is made or an older model deleted."""
    if settings.domain_generalization == "ccsdg" and architecture not in WITH_FIRST_BLOCK:
        raise UserError(f"--domain-generalization ccsdg with {architecture}: it needs a network whose first layer is a "
                        "convolution, an instance normalization and a leaky ReLU.\n"
                        f"Train {', '.join(WITH_FIRST_BLOCK[:-1])} or {WITH_FIRST_BLOCK[-1]}, or generalize by gin or "
                        "slaug, which work with every network.")


def name_of_method(settings: TrainSettings) -> str:
    """What a model's default name adds to its architecture: "+gin+text" and the like; empty for plain training."""
    parts: list[str] = [settings.normalization] if settings.normalization != "auto" else []
    if settings.domain_generalization != "none":
        parts.append(settings.domain_generalization)
    if settings.text_guided:
        route = "" if settings.text_route == "alignment" else f"-{settings.text_route}"
        geometry = "" if settings.text_geometry == "centred" else f"-{settings.text_geometry}"
        parts.append(f"text{route}{geometry}")
    return "".join(f"+{part}" for part in parts)


def plan_to_train(plan: Plan, configuration: ConfigurationName, settings: TrainSettings) -> Plan:
    """The plan with the normalization that the settings ask for or that domain generalization needs.

    Random convolutions, curves and spectra are of use only where every image uses the same range of values, and a
    window of the source's Hounsfield units cuts another device's images off: so a plan with another normalization
    gets one of each image by itself. The store of preprocessed cases follows from the plan.
    """
    if settings.normalization != "auto":
        return with_normalization(plan, settings.normalization)
    schemes = {channel.scheme for channel in plan.configurations[configuration].normalization}
    if settings.domain_generalization == "none" or schemes <= set(OWN_REASON):
        return plan
    chosen = normalization_for_domains(schemes)
    logger.info("--domain-generalization %s: images are normalized by %s instead of the plan's %s, in training and in "
                "prediction; their store lies beside the plan's", settings.domain_generalization, chosen,
                ", ".join(sorted(schemes)))
    return with_normalization(plan, chosen)
