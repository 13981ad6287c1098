"""`vlm evaluate`: a model on sets of images that it was not trained on, and a report of it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from autoseg.output import write_json_object, write_stdout
from autoseg.recording import recorded
from autoseg.records import replacing, storage_error, write_record
from vlm.corpus.stats_tables import format_table
from vlm.evaluation.figures import draw_all
from vlm.evaluation.records import EvaluationReport
from vlm.evaluation.report_page import render_markdown, render_page, summary
from vlm.evaluation.report_tables import all_tables
from vlm.evaluation.suite_files import choose_sets, read_suite
from vlm.evaluation.suites import EvaluationOptions, evaluate_suite
from vlm.model.devices import DeviceName, choose_device
from vlm.model.embedding import open_embedder


def evaluate(  # noqa: PLR0913 (a command's options)
    *,
    model: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    suite: str,
    data: Path,
    corpus: Path | None = None,
    sets: str = "",
    device: DeviceName = "auto",
    available: Annotated[bool, Parameter(negative=())] = False,
    zero_shot_only: Annotated[bool, Parameter(negative=())] = False,
    cache: Path | None = None,
    resamples: Annotated[int, Parameter(validator=validators.Number(gte=100))] = 1000,
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    json: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object on stdout.")] = False,
) -> int:
    """Measure a model: zero-shot classification, linear probes, retrieval; with intervals, plots and a page.

    Parameters
    ----------
    model
        Folder of a model of `vlm train` or `vlm import-unimed`, or of any model that open_clip loads.
    output
        Folder for report.json, report.md, index.html (open it in a browser) and the plots.
    suite
        `mini` (the mini-corpus's test splits), `unimed21` (the 21 published sets), or a TOML file of your own.
    data
        Folder with a subfolder for each set; or a built corpus that has the suite's sources.
    corpus
        What the model was trained on: sets of which it may have seen images are flagged.
    sets
        Only these, by name, with commas between.
    available
        Measure the sets, classes and images that are there; without it, whatever is missing is an error.
    zero_shot_only
        No linear probes.
    cache
        Folder for embeddings, by default `features` in the output: a second run with the same images is quick.
    resamples
        Of the bootstrap behind the intervals.
    """
    chosen, plans = read_suite(suite)
    plans = choose_sets(plans, tuple(name.strip() for name in sets.split(",") if name.strip()))
    with recorded("evaluate", output, seed) as recording:
        _make_folder(output)
        chosen_device = choose_device(device)
        recording.device = str(chosen_device)
        embedder = open_embedder(model, chosen_device)
        recording.inputs |= {"model": str(model.resolve()), "weights": embedder.identity, "suite": suite,
                             "data": str(data.resolve()), **({"corpus": str(corpus.resolve())} if corpus else {})}
        options = EvaluationOptions(seed=seed, resamples=resamples, available=available,
                                    with_probes=not zero_shot_only, cache=cache or output / "features")
        report = evaluate_suite(embedder, chosen, plans, data, options, corpus)
        _write_all(report, output)
        recording.results |= {one.name: one.scores[one.metric].value for one in report.sets}
    if json:
        write_json_object({"written": str(output), **report.model_dump(mode="json")})
    else:
        tables = [format_table(table) for table in all_tables(report) if table.title != "What training may have seen"]
        write_stdout("\n\n".join([summary(report), *tables, *report.notes,
                                  f"Written: {output / 'index.html'} (open it in a browser)"]))
    return 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def _write_all(report: EvaluationReport, folder: Path) -> None:
    pictures = draw_all(report, folder)
    for name, text in (("index.html", render_page(report, pictures)), ("report.md", render_markdown(report, pictures))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_record(report, folder / "report.json")
