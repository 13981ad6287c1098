"""`vlm export-text`: the text tower of a model, as a folder that loads without open_clip and without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded

if TYPE_CHECKING:
    from vlm.export.records import TextTowerRecord


def export_text(
    *,
    model: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Write a model's text tower: weights as safetensors, config, tokenizer, and how the weights came to be.

    Parameters
    ----------
    model
        A folder that `vlm train` or `vlm import-unimed` wrote, or one of open_clip (BiomedCLIP) with the config of its
        text tower in it.
    output
        The tower's folder, for `vlm encode-labels --tower`.
    overwrite
        Replace a tower that is there already.
    """
    from vlm.export.exporting import export_text as export
    from vlm.export.towers import TOWER_RECORD

    if (output / TOWER_RECORD).exists() and not overwrite:
        raise UserError(f"{output} holds a text tower already. Choose another folder, or replace it with --overwrite.")
    with recorded("export-text", output) as recording:
        record = export(model, output)
        recording.inputs |= {"model": str(model.resolve()), "model_sha256": record.model_sha256}
        recording.results |= {"weights_sha256": record.weights_sha256, "dimension": record.dimension}
    if json:
        write_json_object({"written": str(output), **record.model_dump(mode="json")})
    else:
        write_stdout(f"{output}: text tower of {record.name}, {record.dimension} dimensions, {record.pooling} pooling, "
                     f"context {record.context_length} tokens.\n{_trained(record)}\n"
                     f"Next: vlm encode-labels DATASET --tower {output} -o BANK")
    return 0


def _trained(record: "TextTowerRecord") -> str:
    if record.training is None:
        return "Trained elsewhere." if record.imported is not None else "Not trained here."
    better = record.training.better_than_start
    if better is None or better.low is None or better.high is None:
        verdict = "whether it beats its starting weights was not measured"
    else:
        told = f"{better.value:+.3f} ({better.low:+.3f} to {better.high:+.3f}) {better.measure}".rstrip()
        verdict = f"against its starting weights {told}"
    return f"Trained on {record.training.corpus} with recipe {record.training.recipe}; {verdict}."
