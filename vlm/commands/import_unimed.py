"""`vlm import-unimed`: a released checkpoint of UniMed-CLIP becomes a model folder of ours."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded


def import_unimed(
    checkpoint: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    text: str,
    config: str = "unimed-b16",
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Read a released checkpoint without running anything in it, and write a model folder.

    The checkpoint may be used under its own licence only: CC BY-NC 4.0, no commercial use.

    Parameters
    ----------
    checkpoint
        The .pt file as released.
    output
        The model folder.
    text
        Config and tokenizer of the text tower: a folder, or a hub id (BiomedBERT's is
        microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract), which is downloaded. Its weights are not needed.
    config
        unimed-b16, unimed-l14, unimed-l14-large, or a JSON file of open_clip's form.
    overwrite
        Replace a model that is there already.
    """
    from vlm.model.architectures import read_model_config
    from vlm.model.clip import RECORD_NAME, save_model
    from vlm.model.released import import_released

    if (output / RECORD_NAME).exists() and not overwrite:
        raise UserError(f"{output} holds a model already. Choose another folder, or replace it with --overwrite.")
    with recorded("import-unimed", output) as recording:
        model = import_released(checkpoint, read_model_config(config), text)
        record = save_model(model, output)
        assert record.imported is not None
        recording.inputs |= {"checkpoint": record.imported.sha256, "config": config, "text": text}
        recording.results |= {"tensors": record.imported.tensors, "weights_sha256": record.weights_sha256}
    if json:
        write_json_object({"written": str(output), **record.model_dump(mode="json")})
    else:
        told = ", ".join(f"{name} {value}" for name, value in record.imported.facts.items())
        write_stdout(f"{output}: {record.imported.tensors} tensors of {checkpoint.name}, all of them fit {config}"
                     f"{f' ({told})' if told else ''}.\nLicence of the weights: {record.licence}.\n"
                     f"Next: vlm evaluate --model {output} -o REPORT, or vlm export-text --model {output} -o TOWER")
    return 0
