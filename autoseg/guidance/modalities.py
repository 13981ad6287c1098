"""Kinds of device: their names in sentences, and which of them a dataset's channel names mean."""

import re
from collections.abc import Iterable
from typing import get_args

from autoseg.errors import UserError
from autoseg.guidance.records import Modality

MODALITIES: tuple[Modality, ...] = get_args(Modality)

IMAGES: dict[Modality, str] = {
    "CT": "a CT image", "MR": "an MR image", "US": "an ultrasound image", "X-ray": "an X-ray image",
    "PET": "a PET image", "fundus": "a fundus photograph", "OCT": "an optical coherence tomography image",
    "pathology": "a microscope image", "endoscopy": "an endoscopic image", "dermoscopy": "a dermoscopic image",
}

CHANNELS: dict[Modality, str] = {
    "CT": r"(?:ce|nc|ld|hr|cb|low dose )?ct[ap]?|hu|computed tomography|arterial|portal(?: venous)?",
    "MR": r"mri?|magnetic resonance|t[12].*|flair|dwi|adc|swi|b?ssfp|b?ffe|lge|cine|pd|pdw?|dce|dixon|spir|mra|"
          r"(?:in|out|opposed) ?(?:of )?phase|water|fat",
    "US": r"us|ultraso\w*|sonogra\w*|b ?mode|echo\w*|tee|tte",
    "X-ray": r"c?xr|x ?rays?|dx|radiogra\w*|mammogra\w*|dsa|angiogra\w*|fluoro\w*",
    "PET": r"pet|suv|fdg",
    "fundus": r"fundus|cfp|retina\w*|color fundus",
    "OCT": r"oct|optical coherence tomography",
    "pathology": r"patho\w*|histo\w*|h ?e|microscop\w*|smear|wsi|cytolog\w*",
    "endoscopy": r"endoscop\w*|colonoscop\w*|laparoscop\w*",
    "dermoscopy": r"dermoscop\w*|dermatoscop\w*|skin",
}
"""Patterns of channel names, in small letters with spaces. Red, green and blue are of no kind of device."""


def as_modality(name: str) -> Modality:
    """The modality of that name, however it is written ("MRI", "Ultrasound"); UserError where it is none."""
    if (found := modality_of_channel(name)) is None:
        raise UserError(f"{name!r} is no modality; there are {', '.join(MODALITIES)}.")
    return found


def modality_of_channel(name: str) -> Modality | None:
    """What a channel name of dataset.json means ("T2SPIR" is MR, "CXR" X-ray); None where it does not say it."""
    words = " ".join(re.findall(r"[^\W_]+", name.casefold()))
    exact = {modality.casefold().replace("-", " "): modality for modality in MODALITIES}
    if words in exact:
        return exact[words]
    return next((modality for modality, pattern in CHANNELS.items() if re.fullmatch(pattern, words)), None)


def modality_of_channels(names: Iterable[str]) -> Modality | None:
    """The one modality of all channels; None where they differ (PET and CT) or do not say it (R, G, B)."""
    found = {modality_of_channel(name) for name in names}
    return found.pop() if len(found) == 1 else None
