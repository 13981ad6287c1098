"""`autoseg plan`: measure a dataset, decide, write plan.json and splits.json, preprocess."""

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from autoseg.commands.options import (
    DEFAULT_RUN,
    DEFAULT_SEED,
    DeviceOption,
    JsonOption,
    RunOption,
    SeedOption,
    WorkersOption,
)
from autoseg.commands.plan_splits import describe_folds, find_given_splits, settle_folds
from autoseg.commands.probing import device_to_probe, refine_on_device
from autoseg.commands.stage_table import describe_configurations, format_stages, stages_as_json
from autoseg.data.dataset import Dataset, open_dataset
from autoseg.data.parallel import default_workers
from autoseg.data.preprocessing import preprocess_dataset
from autoseg.data.splits import Folds
from autoseg.data.store import store_folder
from autoseg.errors import UserError
from autoseg.output import write_json_object, write_stdout
from autoseg.planning.configurations import with_parts
from autoseg.planning.fingerprint import measure, same_facts
from autoseg.planning.planner import ArchitectureChoice, PlanSettings, add_architecture, decide_plan, store_record
from autoseg.planning.summary import describe_plan
from autoseg.progress import readable_seconds
from autoseg.recording import recorded
from autoseg.records import content_hash, read_record, write_record
from autoseg.schema import ArchitectureName, ConfigurationName, Fingerprint, NormalizationChoice, Plan

logger = logging.getLogger("autoseg")


def plan(  # noqa: PLR0913 (a command's options)
    dataset: Path,
    /,
    *,
    run: RunOption = DEFAULT_RUN,
    memory_gib: Annotated[float | None, Parameter(help="GPU memory to plan for (8, or the preset size's).")] = None,
    architecture: Annotated[
        ArchitectureChoice,
        Parameter(help="`auto`: chosen by rule from what was measured. On a planned run this adds a network."),
    ] = "auto",
    configurations: Annotated[
        str | None, Parameter(help="Comma-separated: 2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres (which "
                                             "takes the two before it along). Planned and preprocessed.")
    ] = None,
    preset_size: Annotated[Literal["M", "L", "XL"] | None, Parameter(help="nnU-Net's residual presets.")] = None,
    nnunet_parity: Annotated[bool, Parameter(negative=(), help="Keep nnU-Net's numbers even where silly.")] = False,
    normalization: Annotated[
        NormalizationChoice,
        Parameter(help="`auto`: by the channels' names; a planned run keeps its own. `percentile`, `rank`: of each "
                       "image by itself, for networks that must survive another scanner or sequence; on a planned run "
                       "this changes the plan, and models trained before keep theirs."),
    ] = "auto",
    splits: Annotated[
        Path | None,
        Parameter(help="Folds from a file: splits.json of a run, or nnU-Net's splits_final.json. By default the run's "
                       "own, the dataset folder's splits_final.json, or drawn."),
    ] = None,
    preprocess: Annotated[bool, Parameter(name="--preprocess", help="Off: only measure and decide.")] = True,
    explain: Annotated[
        bool, Parameter(negative=(), help="Show every stage: shape, stride, mm, channels, tokens, costs.")
    ] = False,
    probe_memory: Annotated[
        bool | None,
        Parameter(help="Train two steps on the device and fit patch and batch to the memory measured. By default on a "
                  "GPU; with --nnunet-parity only if asked, and then patch and batch stay."),
    ] = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = DEFAULT_SEED,
    json: JsonOption = False,
) -> int:
    """Measure a dataset, decide spacing, patch, batch and network, and preprocess it.

    Parameters
    ----------
    dataset
        Folder in nnU-Net's raw layout (dataset.json, imagesTr, labelsTr) or the Medical Segmentation Decathlon's.
    """
    probed_device = device_to_probe(device, probe_memory, nnunet_parity)
    with recorded("plan", run, seed) as recording:
        start = time.perf_counter()
        workers = default_workers() if workers is None else _positive(workers)
        settings = PlanSettings(
            memory_gib=memory_gib, architecture=architecture, configurations=_configurations(configurations),
            preset_size=preset_size, nnunet_parity=nnunet_parity, normalization=normalization,
        )
        opened = open_dataset(dataset)
        _refuse_another_dataset(run, opened)
        given_splits = find_given_splits(run, opened, splits)
        fingerprint = measure(opened, workers)
        decided = _decide(run, fingerprint, settings)
        measured_seconds = time.perf_counter() - start
        wanted = _configurations(configurations) or (default_configuration(decided),)
        if probed_device is not None:
            decided = refine_on_device(decided, fingerprint, settings, wanted, probed_device, recording)
        folds = settle_folds(run, opened, fingerprint, given_splits, seed, nnunet_parity)
        # The facts last: until they are written, a plan that was cut short is decided anew.
        write_record(decided, run / "plan.json")
        write_record(fingerprint, run / "fingerprint.json")
        if preprocess:
            records = {configuration: store_record(decided, configuration) for configuration in wanted}
            stores = {store_folder(run, name, record): record for name, record in records.items()}
            for folder, record in stores.items():  # a cascade shares the store of 3d_fullres
                preprocess_dataset(opened, record, folder, workers)
        seconds = time.perf_counter() - start
        recording.inputs["dataset"] = str(opened.root)
        recording.inputs["fingerprint"] = content_hash(fingerprint.model_dump(mode="json"))
        recording.results.update(
            cases=len(fingerprint.cases), folds=folds.rule, measure_seconds=round(measured_seconds, 3),
            seconds=round(seconds, 3), peak_memory_mib=_peak_memory_mib(),
        )
        if json:
            write_json_object({**_as_json(decided, run, seconds, explain), **_folds_as_json(folds)})
        else:
            write_stdout(_as_text(decided, fingerprint, folds, run, seconds, explain))
    return 0


def default_configuration(plan: Plan) -> ConfigurationName:
    """What `train` takes when no configuration is named: 3d_fullres where it exists, else 2d."""
    return "3d_fullres" if "3d_fullres" in plan.configurations else "2d"


def read_plan(run: Path) -> Plan:
    """The plan of a run folder; UserError that says how to make one when there is none."""
    path = run / "plan.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: this run has no plan yet.\nRun `autoseg plan DATASET --run {run}` "
                        "first, or name another run folder with --run.")
    return read_record(Plan, path, "Run `autoseg plan` again to write it anew.")


def _positive(workers: int) -> int:
    if workers < 1:
        raise UserError(f"--workers {workers}: at least 1 was expected.")
    return workers


def _configurations(text: str | None) -> tuple[ConfigurationName, ...] | None:
    if text is None:
        return None
    known: dict[str, ConfigurationName] = {name: name for name in get_args(ConfigurationName)}
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        raise UserError(f"--configurations {text}: expected a comma-separated list of {', '.join(known)}.")
    return with_parts([known[name] for name in dict.fromkeys(names)])


def _refuse_another_dataset(run: Path, dataset: Dataset) -> None:
    path = run / "plan.json"
    if path.exists() and Path(before := read_plan(run).dataset) != dataset.root.resolve():
        raise UserError(f"{path} was made for {before}, not for {dataset.root.resolve()}; a run folder belongs to one "
                        "dataset.\nName another folder with --run.")


def _decide(run: Path, fingerprint: Fingerprint, settings: PlanSettings) -> Plan:
    """A new plan; or, where this run was planned from the same facts, that plan with one network added or renewed."""
    old_facts = run / "fingerprint.json"
    if not (run / "plan.json").exists() or not old_facts.exists():
        return decide_plan(fingerprint, settings)
    if not same_facts(read_record(Fingerprint, old_facts), fingerprint):
        logger.info("the dataset has changed since it was planned: everything is decided anew")
        return decide_plan(fingerprint, settings)
    return add_architecture(read_plan(run), fingerprint, settings)


def _peak_memory_mib() -> float:
    """Peak resident memory of this process plus the largest of its workers, MiB."""
    import resource

    units_per_mib = 2**20 if sys.platform == "darwin" else 2**10
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(peaks) / units_per_mib, 1)


def _as_text(
    plan: Plan, fingerprint: Fingerprint, folds: Folds, run: Path, seconds: float, explain: bool
) -> str:  # fmt: skip
    tables = []
    if explain:
        tables = [
            format_stages(f"Stages of {name}, {plan.configurations[name].architecture}", description)
            for name, description in describe_configurations(plan).items()
        ]
    planned = dict.fromkeys(name for entry in plan.configurations.values() for name in entry.networks)
    others = f"\n      --architecture takes another of the planned networks: {', '.join(planned)}"
    return "\n\n".join([
        describe_plan(plan, fingerprint, describe_folds(folds)),
        *tables,
        f"Planned in {readable_seconds(seconds)}. Written: {run / 'plan.json'}\n"
        f"Next: autoseg train --run {run}{'' if folds.splits else ' --fold all'}"
        f"   (on a machine without GPU: add --preset quick)" + others * (len(planned) > 1) + "\n",
    ])


def _as_json(plan: Plan, run: Path, seconds: float, explain: bool) -> dict[str, object]:
    networks = {
        name: {"spacing": configuration.spacing, **_network_facts(plan, name, configuration.architecture)}
        for name, configuration in plan.configurations.items()
    }
    if explain:
        for name, description in describe_configurations(plan).items():
            networks[name].update(stages_as_json(description))
    return {"run": str(run), "seconds": round(seconds, 3), "axes": plan.axes, "configurations": networks}


def _folds_as_json(folds: Folds) -> dict[str, object]:
    return {"folds": {"count": len(folds.splits), "rule": folds.rule, "rare_labels": dict(folds.spread)}}


def _network_facts(plan: Plan, configuration: ConfigurationName, architecture: ArchitectureName) -> dict[str, object]:
    network = plan.configurations[configuration].networks[architecture]
    return {"architecture": architecture, "patch_shape": network.patch_shape, "batch_size": network.batch_size,
            "memory_gib": network.memory_gib, "memory_measured_on": network.memory_measured_on,
            "checkpointed_stages": network.checkpointed_stages}
