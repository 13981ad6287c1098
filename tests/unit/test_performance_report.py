"""From the figures of alternating rounds to the page: medians, ratios of a round's two runs, limits, goals."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from measuring import LimitReached, Limits, Measurement, measure_command, write_results  # noqa: E402
from performance_figures import OURS, THEIRS, alternate, failure, number, ratio, spread  # noqa: E402
from performance_goals import goals_table  # noqa: E402
from performance_report import write_page  # noqa: E402
from performance_setting import QUICK, Setting  # noqa: E402
from performance_speeds import measure_speeds  # noqa: E402
from performance_startup import measure_startup  # noqa: E402
from performance_tables import tables  # noqa: E402
from performance_train import measure_train  # noqa: E402

PHANTOM = "phantom_64x64x40_117labels"


def measured(seconds, peak=100.0, **more):
    return {"seconds": seconds, "processor_seconds": seconds, "peak_mib": peak, **more}


def staged(network, rest, ceiling):
    stages = dict.fromkeys(("read", "preprocess", "decode", "write"), rest / 4)
    return measured(network + rest, network=network, total=network + rest, ceiling=ceiling, passes=8, **stages)


def results():
    about = {"cases": 1, "tta": True, "narrower": 1, "coarser": 1.0}
    bare = {**about, "tta": False, "narrower": 16, "coarser": 1.5}
    died = {"failed": "out of memory at 7 GiB", **measured(33.0, 7000.0)}
    return {
        "plan": [{"data": "Hippocampus_MSD04", "what": "plan + preprocess", "plans_differ_in": [],
                  OURS: [measured(2.0), measured(4.0)], THEIRS: [measured(20.0, 1000.0), measured(20.0, 1000.0)]},
                 {"data": "AbdCT_SABS_13organs", "skipped": "it is not here"}],
        "train": [{"data": "Hippocampus_MSD04 3d_fullres", "what": "training steps", "precision": "bfloat16",
                   "patch_shape": [40, 56, 40], "batch_size": 9, "plans_differ_in": [], "steps": 4,
                   OURS: [measured(9.0, steps_per_second=1.5, data_wait=0.02)],
                   THEIRS: [measured(9.0, steps_per_second=1.0, data_wait=0.3)],
                   f"{OURS} alone": [{"steps_per_second": 1.6}], f"{THEIRS} alone": [{"steps_per_second": 1.2}]}],
        "predict": [{"data": "Hippocampus_MSD04", "what": "predict", **about, "equal_voxels": 0.99999,
                     OURS: [measured(13.0, without_start=10.0, ceiling=9.6)], THEIRS: [measured(39.0)]},
                    {"data": "Hippocampus_MSD04", "what": "stages", **about,
                     OURS: [staged(9.8, 0.2, 9.6)], THEIRS: [staged(20.0, 5.0, 15.0)]},
                    {"data": PHANTOM, "what": "predict", **bare, "equal_voxels": None,
                     OURS: [measured(5.0)], THEIRS: [died]},
                    {"data": PHANTOM, "what": "stages", **bare, OURS: [staged(1.0, 1.0, 0.9)], THEIRS: [died]}],
        "scaling": [{"data": "64×64×64, 8 labels", "what": "decode by volume", "along": "volume", "voxels": 64**3,
                     "labels": 8, OURS: [measured(3.0, decode=0.1)], THEIRS: [measured(9.0, decode=3.0)],
                     f"{OURS} ragged": [measured(3.0, decode=0.2)]}],
        "speeds": [{"data": "Hippocampus_MSD04 fold 0", "what": "speeds", "level": "balanced", "cases": 40,
                    "exact_dice": 0.88, "exact_seconds": 90.0, "trained": False, "minutes_of_training": 20,
                    OURS: [{"dice_change": -0.0031, "dice_margin": 0.001, "worst_change": -0.02, "times_faster": 9.5,
                            "precision": "bfloat16", "overlap": 0.25, "copies": 2, "seconds": 9.0}]}],
    }  # fmt: skip


def test_a_ratio_is_that_of_a_rounds_two_runs():
    found = ratio([measured(20.0), measured(10.0), measured(30.0)], [measured(10.0), measured(2.0), measured(10.0)],
                  "seconds")
    assert (found.median, found.low, found.high, found.count) == (3.0, 2.0, 5.0, 3)
    assert found.text() == "3 [2, 5]"


@pytest.mark.parametrize(("value", "said"), [(0.0, "0"), (0.01234, "0.0123"), (1.0, "1"), (98.76, "98.8"),
                                             (123.4, "123"), (12345.6, "12346"), (99.99, "100")])
def test_three_digits(value, said):
    assert number(value) == said


def test_sides_alternate_and_one_that_died_runs_no_more():
    order = []

    def side(name, dies=False):
        def run():
            order.append(name)
            if dies:
                raise LimitReached("out of memory at 1 GiB", Measurement(1.0, 1.0, 900.0))
            return measured(1.0)
        return run

    found = alternate({OURS: side(OURS), THEIRS: side(THEIRS, dies=True)}, 3, tell=lambda _: None)
    assert order == [OURS, THEIRS, OURS, OURS]
    assert len(found[OURS]) == 3
    assert failure(found[THEIRS]) == "out of memory at 1 GiB"
    assert spread([]) is None
    assert ratio(found[THEIRS], found[OURS], "seconds") is None


def test_a_child_beyond_its_memory_or_time_is_ended_and_named():
    hungry = [sys.executable, "-c", "x = bytearray(3 << 30)"]
    with pytest.raises(LimitReached, match="out of memory at 1 GiB"):
        measure_command(hungry, None, Limits(memory_gib=1))
    growing = [sys.executable, "-c", "import time; x = b'x' * (300 << 20); time.sleep(60)"]
    with pytest.raises(LimitReached, match="out of memory at 0.1 GiB") as reached:
        measure_command(growing, None, Limits(memory_gib=0.1, limits_addresses=False))
    assert reached.value.measured.peak_mib > 100
    with pytest.raises(LimitReached, match="not done after 0.2 s"):
        measure_command([sys.executable, "-c", "import time; time.sleep(60)"], None, Limits(seconds=0.2))
    with pytest.raises(RuntimeError, match="ended with 3"):
        measure_command([sys.executable, "-c", "raise SystemExit(3)"], None, Limits(memory_gib=4, seconds=60))


def test_figures_become_tables():
    found = results()
    plan = tables("plan", found["plan"])
    assert "| Hippocampus_MSD04 | 3 [2, 4] | 20 [20, 20] | 7.5 [5, 10]× |" in plan
    assert "* AbdCT_SABS_13organs, all: skipped, it is not here." in plan
    train = tables("train", found["train"])
    assert "| bfloat16 | 1.5 | 2 % | 1.6 | 93.8 % | 1 | 30 % | 1.2 | 1.5× |" in train
    predict = tables("predict", found["predict"])
    assert f"| {PHANTOM} (1 case, layers 1/16, no mirrored copies, pixels 1.5×) | exact | 5 | out of memory" in predict
    assert "| 98 % | 96 % |" in predict
    assert "| balanced | -0.0031 | 0.0010 | -0.0200 | 9.5× |" in tables("speeds", found["speeds"])


def test_memory_of_a_gpu_is_shown_where_there_is_one():
    rows = results()["predict"]
    assert "GPU" not in tables("predict", rows)
    for sample in (*rows[1][OURS], *rows[1][THEIRS]):
        sample["gpu_peak_mib"] = 4321.0
    assert "| 100 | 4321 |" in tables("predict", rows)


def test_goals_say_what_was_reached_missed_and_not_measured():
    lines = goals_table(results(), "cpu").splitlines()

    def about(*words):
        return [line for line in lines if all(word in line for word in words)]

    assert about("plan + preprocess | Hippocampus", "≥ 5×", "7.5 [5, 10]×", "| reached |")
    assert about("peak memory", "10 [10, 10]×", "| reached |")
    assert about("training steps in bfloat16", "≥ 2×", "| 1.5× | **missed** |")
    assert about("of the network alone", "93.8 %", "**missed**")
    assert about("exact with mirrored copies", "≥ 95 %", "| 96 % | reached |")
    assert about("117 labels", "≥ 3×", "nnunetv2: out of memory at 7 GiB; autoseg ended")
    assert about("Dice − exact's", "≥ -0.002", "| -0.0031 | **missed** |")
    assert about("start to first mask", "not measured")
    assert not about("AbdCT")


def test_real_data_that_are_not_here_are_skipped_with_a_reason(tmp_path):
    setting = Setting(work=tmp_path, data=tmp_path / "absent", device="cpu", sizes=QUICK, limits=Limits())
    for part, measure in (("train", measure_train), ("startup", measure_startup), ("speeds", measure_speeds)):
        rows = list(measure(setting))
        assert [row["data"].partition(" ")[0] for row in rows] == ["Hippocampus_MSD04"]
        assert "Hippocampus_MSD04 is not here" in tables(part, rows)


def test_the_page_names_commit_and_machine_beside_the_figures_and_has_its_pictures(tmp_path):
    limits = {"memory_gib": 20.0, "seconds": 60.0}
    for part, rows in results().items():
        write_results(f"performance_{part}_quick", {
            "command": f"measure {part}", "size": "quick", "minutes": 1.5, "device": "cpu", "limits": limits,
            "rows": rows}, tmp_path / "results")
    page = write_page(tmp_path / "results", tmp_path / "docs", "quick").read_text()
    assert page.count("commit ") >= 4
    assert "`measure scaling` (quick sizes)" in page
    assert "Limit of memory: 20 GiB; 1.5 minutes." in page
    assert "## On a GPU" not in page
    for name in ("ratios", "stages", "scaling"):
        assert f"(performance_{name}.png)" in page
        assert (tmp_path / "docs" / f"performance_{name}.png").stat().st_size > 5000
    assert max(map(len, [line for line in page.splitlines() if not line.startswith(("|", "`"))])) <= 120
