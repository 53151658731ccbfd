"""What a teacher cost to train: counted by hand from its file and its data, and said where the tables say what runs cost."""

import numpy as np
import pandas as pd
import pytest
import tiny
from made_up import TABLE, record_of, runs_of

from kd import checkpoints
from kd.data import load_data
from kd.models import Supernet, build, complexity
from kd.report.markdown import markdown
from kd.report.summary import summary
from kd.study import paths
from kd.study.records import frame
from kd.study.teacher_training import teacher_training

pytest_plugins = ["made_up_root"]
WIDTHS = [0.5, 1.0]


@pytest.fixture
def teachers(root):
    """{kind: md5} of a made-up route of 5 epochs and a supernet of 2, grown from it, with their 44 training images in place."""
    tiny.data().save(paths.images_path("p"))
    found, start = {}, None
    for kind, epochs in (("route", 5), ("supernet", 2)):
        path = paths.teacher_path("p", kind, "cnn3x4")
        about = {"network": "cnn3x4", "classes": 3, "channels": 1, "recipe": {"epochs": epochs}, "widths": WIDTHS, "start": start}
        checkpoints.save_state(path, {"curve": []}, kind=kind, **about)
        start = found[kind] = checkpoints.file_md5(path)
    return found


def run_with(teacher_md5, **changes):
    return {"teacher": "cnn3x4", "teacher_md5": teacher_md5} | changes


def test_training_of_a_route_and_of_a_supernet_by_hand(teachers):
    whole = build("cnn3x4", 3, 1)
    plain = complexity(whole, (1, 8, 8))[1]
    supernet, each = Supernet(whole, WIDTHS), []
    for index in range(2):
        supernet.select(index)
        each.append(complexity(supernet, (1, 8, 8))[1])
    assert 0 < each[0] < each[1] == plain
    route = {"route": teachers["route"]}
    assert teacher_training(run_with(route), "p") == 3 * 5 * plain
    assert teacher_training(run_with(route, images_per_class=4), "p") == pytest.approx(3 * 5 * plain * 44 / 12)
    assert teacher_training(run_with({"supernet": teachers["supernet"]}), "p") == 3 * 5 * plain + 3 * 2 * sum(each)
    assert teacher_training(run_with({}), "p") == 0


def test_of_images_that_stay_files(root, tmp_path):
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "few" / place).mkdir(parents=True)
        (tmp_path / "few" / place / "1.jpg").write_bytes(b"nobody reads it")
    load_data("jpegfolder", tmp_path / "few", size=32).save(paths.images_path("p"))
    path = paths.teacher_path("p", "route", "resnet8")
    checkpoints.save_state(path, {"curve": []}, kind="route", network="resnet8", classes=2, channels=3, recipe={"epochs": 5})
    run = {"teacher": "resnet8", "teacher_md5": {"route": checkpoints.file_md5(path)}}
    assert teacher_training(run, "p") == 3 * 5 * complexity(build("resnet8", 2), (3, 32, 32))[1]


def test_a_teacher_that_is_not_here_is_unknown(teachers):
    assert teacher_training(run_with({"route": "t" * 32}), "p") is None and teacher_training(run_with({"route": teachers["route"]}), "q") is None
    paths.teacher_path("p", "route", "cnn3x4").write_bytes(b"another")  # from which this supernet did not grow
    assert teacher_training(run_with({"supernet": teachers["supernet"]}), "p") is None


def test_records_have_it_as_a_column(teachers):
    records = [record_of("a"), record_of("b")]
    records[0]["run"] |= run_with({"route": teachers["route"]})
    found = frame([record | {"table": "kd_main", "row": "KD", "pair": "x -> y"} for record in records], "p")["teacher_training"]
    assert found[0] == teacher_training(records[0]["run"], "p") and np.isnan(found[1])


def test_the_legend_says_what_the_teachers_cost():
    accuracy = {"KD": {0: 90.0, 1: 91.0}, "student alone": {0: 80.0, 1: 82.0}, "PWKD": {0: 90.0, 1: 92.0}}
    table = TABLE | {"rows": [{"row": row} | ({"curriculum": "pwkd"} if row == "PWKD" else {}) for row in accuracy]}
    runs = runs_of(accuracy)
    kd = runs["row"] == "KD"
    runs = runs.assign(key=runs["row"], method=np.where(kd, "kd", "other"), training_multiply_adds=np.where(kd, 200.0, 100.0))
    assert "once for all" not in markdown(summary(runs, table), table)
    runs["teacher_training"] = runs["row"].map({"KD": 500.0, "student alone": 0.0, "PWKD": 900.0})
    said = "over those of plain KD. The training of teachers, once for all rows, comes on top: the teacher 2.5; the supernet, "
    assert f"{said}with all that it grew from, 4.5. Differences are" in markdown(summary(runs, table), table)
    both = markdown(summary(pd.concat([runs, runs.assign(pair="a -> b")]), table), table)
    assert "the teacher 2.5 (big -> small), 2.5 (a -> b); the" in both
