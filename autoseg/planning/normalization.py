"""Which normalization each channel gets, by nnU-Net's rule: the channel's name decides."""

from typing import Literal

from autoseg.schema import ChannelNormalization, Fingerprint, NormalizationScheme, Plan

SCHEMES: dict[str, NormalizationScheme] = {
    "ct": "ct",
    "nonorm": "nonorm",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
"""Case-folded channel names with a scheme of their own; any other name (T1, R, G, B, …) means z-score."""

CROPPED_AWAY = 3 / 4
"""Where the median case keeps less than this share of its voxels, zero is taken for background, not
intensity."""


def choose_normalization(fingerprint: Fingerprint) -> tuple[tuple[ChannelNormalization, ...], str]:
    """One scheme per channel, and a sentence that says why.

    `within_nonzero` (statistics of z-score over nonzero voxels only) is set where cropping to nonzero
    voxels removes more than a quarter of the median case.
    """
    kept = fingerprint.median_relative_size_after_cropping
    chosen = tuple(
        _for_channel(scheme, kept < CROPPED_AWAY, fingerprint, channel)
        for channel, scheme in enumerate(scheme_of(name) for name in fingerprint.channel_names)
    )
    named = zip(fingerprint.channel_names, chosen, strict=True)
    names = ", ".join(f"{name}: {one.scheme}" for name, one in named)
    reason = f"Normalization by channel name ({names})."
    if any(one.scheme == "ct" for one in chosen):
        reason += " ct clips to the 0.5 and 99.5 percentiles of all foreground, then uses its mean and std."
    if any(one.scheme == "zscore" for one in chosen):
        where = "nonzero voxels" if kept < CROPPED_AWAY else "all voxels"
        reason += (f" zscore takes mean and std of {where} of each case: cropping to nonzero voxels keeps "
                   f"{kept:.0%} of the median case (nonzero voxels are taken below {CROPPED_AWAY:.0%}).")
    return chosen, reason


OWN_REASON = {
    "percentile": "Normalization percentile, as asked for: of each image by itself, its body's 0.5 and 99.5 "
                  "percentiles become 0 and 4, air is 0.",
    "rank": "Normalization rank, as asked for: of each image by itself, the share of its body's voxels that are "
            "darker becomes 0.2 to 4, air is 0.",
}
"""Why a plan has a normalization that its channels' names do not ask for."""


def scheme_of(channel_name: str) -> NormalizationScheme:
    """The scheme that a channel's name asks for, in any case of letters."""
    return SCHEMES.get(channel_name.casefold(), "zscore")


def _for_channel(
    scheme: NormalizationScheme, background_is_zero: bool, fingerprint: Fingerprint, channel: int
) -> ChannelNormalization:
    return ChannelNormalization(
        scheme=scheme,
        within_nonzero=scheme == "zscore" and background_is_zero,
        statistics=fingerprint.intensities[channel],
    )


def own_normalization(plan: Plan) -> str:
    """The plan's normalizations of each image by itself, which nnU-Net does not have, in words; "" if none."""
    used = {channel.scheme for configuration in plan.configurations.values() for channel in configuration.normalization}
    return " and ".join(sorted(used & set(OWN_REASON)))


def with_normalization(plan: Plan, scheme: Literal["percentile", "rank"]) -> Plan:
    """The plan with every channel of every configuration normalized by `scheme`; the statistics stay as facts."""
    configurations = {
        name: configuration.model_copy(update={"normalization": tuple(
            channel.model_copy(update={"scheme": scheme, "within_nonzero": False})
            for channel in configuration.normalization
        )})
        for name, configuration in plan.configurations.items()
    }
    return plan.model_copy(update={"configurations": configurations})
