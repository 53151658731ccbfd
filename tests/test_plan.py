"""What `kd plan` counts and estimates, by hand."""

import itertools

import pytest
from made_up import record_of, write_params, write_runs

from kd.data import load_data
from kd.study import paths, plan, store
from kd.study.profiles import compose
from kd.study.runs import key_of
from kd.study.tables import load_table
from kd.study.yaml_files import parse_value

pytest_plugins = ["made_up_root"]

PARAMS = {
    "data": {"name": "cifar100", "validation": 5000},
    "recipe": {"epochs": 16, "batch_size": 64, "learning_rate": 0.05},
    "recipes": {"kd": {"batch_size": 32}, "resnet8x4": {"learning_rate": 0.01}},
    "seeds": 2,
    "grid_seeds": 3,
    "teachers": ["resnet56", "resnet32x4"],
    "supernets": ["resnet56", "resnet32x4"],
    "pairs": {"default": ["resnet56", "resnet20"], "common": [["resnet56", "resnet20"], ["resnet32x4", "resnet8x4"]]},
    "run": {stage: {} for stage in paths.STAGES} | {"kd": "all", "combined": {"common": "all", "combined": "all"}},
}


@pytest.fixture
def planned(root):
    """planned(seeds=1): the Planned of PARAMS with these changes."""

    def make(**changes):
        write_params(root / "params.yaml", **(PARAMS | changes))
        return plan.Planned()

    return make


def lines_of(text):
    """The lines of a plan by their first word: {"kd": [tables, ..., hours]}, without empty cells."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_plan_counts_by_hand(planned):
    stages, lacking = plan.plan_runs(planned())
    assert lacking == []
    # kd_main: 2 rows x 2 seeds; kd_temperature: 7 rows x 3 seeds, of which plain KD with seeds 0 and 1 is kd_main's
    assert len(stages["kd"]["runs"]) == 4 + 21 - 2 and stages["kd"]["shared"] == 0 and stages["kd"]["tables"] == 2
    assert stages["kr"] == {"runs": [], "tables": 0, "shared": 0, "known": 0}  # not asked for
    # the kd stage's own recipe has other batches, so that nothing of it is shared with common and combined
    common = sum("knowledge" in row for row in load_table("common")["rows"])
    same = 6  # student alone, KD, KR, SRM within the budget, IE-KD, PWKD of common's first pair stand in combined too
    runs = stages["combined"]["runs"]
    assert len(runs) == 2 * (2 * common + 34 - same) and stages["combined"]["shared"] == 0
    assert {(run["student"], run["recipe"]["learning_rate"]) for run in runs} == {("resnet20", 0.05), ("resnet8x4", 0.01)}
    epochs = [run["recipe"]["epochs"] for run in runs]
    assert set(epochs) == {16, 29} and epochs.count(29) == 2 * 2  # KD, as long as SRM: 1.8 x 16, two seeds on two pairs
    stages, _ = plan.plan_runs(planned(recipes={}))
    assert stages["combined"]["shared"] == 2 * 2  # now student alone and KD are taken over from kd
    assert len(stages["combined"]["runs"]) == 2 * (2 * common + 34 - same - 2)


def test_plan_names_what_params_lack(planned):
    _, lacking = plan.plan_runs(planned(teachers=["resnet56"], supernets=[]))
    assert [text.split(", which")[0] for text in lacking] == [
        "supernets: in params.yaml lacks resnet32x4",
        "supernets: in params.yaml lacks resnet56",
        "teachers: in params.yaml lacks resnet32x4",
    ]


def test_plan_prints_without_data(planned, monkeypatch):
    monkeypatch.setenv("KD_DEVICE", "cpu")
    planned()
    text = plan.plan()
    assert lines_of(text)["kd"][:3] == ["2", "23", str(23 * 16)] and lines_of(text)["teacher"][:2] == ["2", "60"]
    assert "45,000 training images of 3x32x32" in text and "estimate, not a measurement" in text and "unknown" not in text
    assert text.splitlines()[-1].endswith("on such a GPU; this machine trains on its CPU, which takes many times as long.")
    planned(data={"name": "imagefolder", "size": 32})
    text = plan.plan()
    assert "Hours are known once `dvc repro data`" in text and lines_of(text)["total"][-1] == "unknown"


def test_imagenet_is_planned_before_it_is_indexed_and_an_index_as_it_is(planned, root, tmp_path):
    values = parse_value(compose("imagenet", str(tmp_path)))
    del values["profile"]
    planned(profile="imagenet", **values)
    text = plan.plan()
    assert "1,271,167 training images of 3x224x224" in text and "evaluation, decoding and start-up are left out" in text
    # srm_imagenet: 100 epochs three times and SRM's 80; srm_probe 180; srm_cifar100 six times 180
    assert lines_of(text)["srm"][1:3] == ["10", "1,640"] and float(lines_of(text)["total"][-1]) > 100
    paths.images_path("imagenet").parent.mkdir(parents=True)
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / "few" / split / name).mkdir(parents=True)
        (tmp_path / "few" / split / name / "1.jpg").write_bytes(b"nobody reads it")
    load_data("jpegfolder", tmp_path / "few", size=64).save(paths.images_path("imagenet"))
    assert "jpegfolder, 2 training images of 3x64x64" in plan.plan()


def test_what_the_store_has_is_not_planned_again(planned):
    """But for a first seed without its weights, into which a notebook wants to look."""
    study = planned()
    runs, _ = plan.plan_runs(study)
    for run in [run for run in runs["kd"]["runs"] if run["seed"] < 2]:
        store.save(store.program_of_run(run), {"key": key_of(run), "run": run}, {})
    runs, _ = plan.plan_runs(study)
    assert runs["kd"]["known"] == 2 + 6 and len(runs["kd"]["runs"]) == 23 - 8
    assert lines_of(plan.plan())["kd"][:4] == ["2", "8", "15", str(15 * 16)]


def test_a_teacher_that_is_there_is_not_planned_again(planned):
    study = planned()
    study.teacher_path("resnet56").parent.mkdir(parents=True)
    study.teacher_path("resnet56").touch()
    assert lines_of(plan.plan())["teacher"][:3] == ["1", "1", "30"]


def test_hours_follow_the_store_of_what_ran_here(planned, root):
    kd = record_of("k", teacher="resnet56", epochs=16)
    kd["run"] |= {"teacher": "resnet56", "student": "resnet20"}
    place = {"table": "kd_main", "row": "KD", "pair": "resnet56 -> resnet20"}
    write_runs(root, [kd | place, kd | place | {"key": "pulled"}], "made_up")
    planned(run={stage: {} for stage in paths.STAGES} | {"kd": {"kd_temperature": "all"}})
    assert plan.measured_rates("made_up") == ({}, [])
    store.save("p", kd, {"seconds": 16 * 3600.0, "device": "abacus"})
    store.save("p", kd | {"key": "pulled"}, {})
    assert plan.measured_rates("made_up") == ({(("resnet56", "resnet20"), "kd"): 3600.0}, ["abacus"])
    text = plan.plan()
    assert lines_of(text)["kd"] == ["1", "21", "336", "336"]  # runs, epochs, and an hour an epoch
    assert "scaled from runs measured here (abacus)" in text


def test_seconds_on_gpu_by_hand():
    # 1 GMAC of teacher and 0.1 of student: 2 (1 + 0.3) GFLOP an image at 76.9 TFLOP/s
    assert plan.seconds_on_gpu(50_000, 64, (10**9, 1), (10**8, 1)) == pytest.approx(50_000 * 2.6e9 / (32.3e15 / 420))
    # tiny networks wait for their kernels: 782 steps of 10 + 3 x 5 + 50 starts
    assert plan.seconds_on_gpu(50_000, 64, (1000, 10), (100, 5)) == pytest.approx(782 * 8e-6 * 75)


def test_known_sizes():
    macs, layers = plan.size_of("resnet20", 100, (3, 32, 32))
    assert 40e6 < macs < 42e6 and layers > 50  # 41 million multiply-adds, as usually quoted
    both, _ = plan.size_of("resnet20", 100, (3, 32, 32), (0.5, 1.0))
    assert 1.2 * macs < both < 1.3 * macs  # half the width, a quarter of the arithmetic
