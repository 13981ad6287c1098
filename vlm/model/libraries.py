"""open_clip imported without the warnings that its import of timm causes: they are about torch's future, not ours."""

import warnings
from typing import Any


def import_open_clip() -> Any:
    """The module open_clip. UserError where it is not installed."""
    from autoseg.errors import UserError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import open_clip
    except ImportError as error:
        raise UserError(f"CLIP models need the package open_clip_torch ({error}).\n"
                        "Install it: pip install 'autoseg[vlm]'.") from None
    return open_clip
