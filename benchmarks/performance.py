"""autoseg beside nnunetv2, alternately in one run, on the same data and weights: seconds, memory, ratios.

    python benchmarks/performance.py --work DIR [--only plan train predict startup scaling speeds] [--quick | --full]

By default sizes are reduced so that all ends within some 20 minutes on two cores. `--full` takes the sizes of
docs/performance.md. Each part's figures go to benchmarks/results/performance_<part>.json (of fewer or smaller data:
performance_<part>_reduced.json, or _quick), from which `python benchmarks/performance_report.py` makes the page. Run it
on a machine that does nothing else.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import RESULTS, Limits, write_results
from performance_data import SHARED
from performance_figures import OURS, failure
from performance_plan import measure_plan
from performance_predict import measure_predict
from performance_report import result_name
from performance_scaling import measure_scaling
from performance_setting import FULL, QUICK, USUAL, Setting
from performance_speeds import measure_speeds
from performance_startup import measure_startup
from performance_tables import print_rows
from performance_train import measure_train

PARTS: dict[str, Callable[[Setting], Iterator[dict[str, Any]]]] = {
    "plan": measure_plan, "train": measure_train, "predict": measure_predict, "startup": measure_startup,
    "scaling": measure_scaling, "speeds": measure_speeds,
}
MEMORY_SHARE = 0.9
"""Of what is free: a child that takes more would be killed by the system, and others with it."""


def main() -> int:
    """1 where a run of ours failed."""
    arguments = _arguments()
    accelerator = _accelerator() if arguments.device == "cuda" else None
    if arguments.device == "cuda" and accelerator is None:
        print("No CUDA device is here: nothing measured.")
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    limits = Limits(_memory_limit(arguments.memory_gib), arguments.seconds, arguments.device == "cpu")
    size = "quick" if arguments.quick else "full" if arguments.full else "reduced"
    sizes = {"quick": QUICK, "reduced": USUAL, "full": FULL}[size]
    setting = Setting(work=arguments.work.resolve(), data=arguments.data, device=arguments.device, sizes=sizes,
                      limits=limits, rounds=arguments.rounds, trained=arguments.trained)
    flags = "--quick " * arguments.quick + "--full " * arguments.full
    failed = False
    for part in arguments.only:
        print(f"\n{part}", flush=True)
        start = time.perf_counter()
        rows: list[dict[str, Any]] = []
        command = f"python benchmarks/performance.py --work DIR {flags}--only {part} --device {arguments.device}"
        command += f" --rounds {arguments.rounds}" * (arguments.rounds is not None)
        command += " --trained FOLD" * (arguments.trained is not None and part == "speeds")
        try:
            for row in PARTS[part](setting):
                rows.append(row)
        finally:  # what was measured before an interruption is kept
            print_rows(part, rows)
            write_results(result_name(part, arguments.device, size), {
                "command": command, "size": size, "accelerator": accelerator,
                "minutes": round((time.perf_counter() - start) / 60, 1), **setting.record(), "rows": rows},
                arguments.results)
        failed |= any(failure(row.get(OURS, ())) is not None for row in rows)
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for datasets, networks and masks; kept")
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the real datasets")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="of everything, instead of each part's own number")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="minutes: does everything run?")
    sizes.add_argument("--full", action="store_true", help="hours: the sizes of docs/performance.md")
    parser.add_argument("--memory-gib", type=float, default=20.0, help="of each side's processes")
    parser.add_argument("--seconds", type=float, default=3600.0, help="that one run of one side may take")
    parser.add_argument("--trained", type=Path, help="a fold's folder with speeds.json, for the part speeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def _memory_limit(asked: float) -> float:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = MEMORY_SHARE * int(fields["MemAvailable"].split()[0]) / 2**20
    if free < asked:
        print(f"{free:.1f} GiB are free for a child, {asked:g} were asked for: the limit is {free:.0f} GiB.")
        return float(int(free))
    return asked


def _accelerator() -> str | None:
    """The card's name; None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
