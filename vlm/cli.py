"""The `vlm` command line: its commands by name, imported only when they run."""

import sys
from pathlib import Path

from cyclopts import App

from autoseg import __version__
from autoseg.errors import UserError
from autoseg.progress import start_logging
from autoseg.records import STORAGE_ERRORS, storage_error

HELP = """The vision-language side of autoseg: from collections of medical images to words that a segmenter can use.

  vlm sources                                    which collections there are, and how to get them

  vlm build-corpus --data DIR -o CORPUS          image-text pairs in shards, deduplicated, split by patient

  vlm corpus-stats CORPUS                        what it holds, in tables and pictures

  vlm train --corpus CORPUS -o MODEL             a CLIP model, trained on it

  vlm evaluate --model MODEL -o REPORT           zero-shot, linear probe, retrieval

  vlm export-text --model MODEL -o TOWER         its text tower as a folder of its own

  vlm encode-labels DATASET --tower TOWER -o BANK   what a dataset's labels mean, as vectors

To segment images, see `autoseg --help`.
"""

COMMANDS = {
    "sources": "List the sources that a corpus can be built from, and what of them is on this disk.",
    "build-corpus": "Build a corpus of image-text pairs: deduplicate, split by patient, caption, write shards.",
    "corpus-stats": "Count what a corpus holds; a contact sheet and caption lengths to look at.",
    "train": "Train a CLIP model on a corpus, by a recipe.",
    "evaluate": "Measure a model zero-shot, by linear probes and by retrieval, beside published figures.",
    "import-unimed": "Read a released UniMed-CLIP checkpoint into a model folder; nothing in it is run.",
    "export-text": "Write a model's text tower as a folder that loads without open_clip and without a network.",
    "encode-labels": "Encode what labels mean into a text bank: a vector per label, with its sentences.",
}

app = App(name="vlm", help=HELP, version=__version__, help_format="markdown")
for _name, _help in COMMANDS.items():
    _module = _name.replace("-", "_")
    app.command(f"vlm.commands.{_module}:{_module}", name=_name, help=_help)


def main() -> None:
    """Exit 0 done, 1 a bug of ours (traceback), 2 something the user can mend, 130 stopped by Ctrl-C."""
    start_logging()
    try:
        status = app(sys.argv[1:], result_action="return_value")
    except UserError as error:
        sys.stderr.write(f"\nvlm: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        sys.stderr.write(f"\nvlm: {storage_error(error, Path(error.filename or '.'))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\nvlm: stopped. What is finished stays; the same command goes on from there.\n")
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
