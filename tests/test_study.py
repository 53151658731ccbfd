"""A teacher's file in its place: what determines it, and that a supernet grows from the route that it names."""

import json

import pytest
import tiny
from made_up import write_params

from kd import checkpoints
from kd.errors import ConfigError
from kd.study import paths, store
from kd.study.study import Study, teach_supernet

pytest_plugins = ["made_up_root"]
TEACHER = {"epochs": 2, "learning_rate": 0.05, "milestones": None, "every": 1, "seed": 0}
SUPERNET = {"widths": [0.5, 1.0], "distil_in_place": True, "start": "teacher", "epochs": None, "learning_rate": None}


@pytest.fixture
def given(root, monkeypatch):
    """given(start="scratch"): a params.yaml in force with tiny data, one small network and this supernet."""
    monkeypatch.setenv("KD_PIPELINE", "1")
    monkeypatch.setenv("KD_DEVICE", "cpu")
    monkeypatch.setattr(store, "absorb_teacher", lambda path, about: None)  # there is no repository of DVC's
    tiny.data().save(paths.images_path("made_up"))

    def write(milestones=None, **supernet):
        changes = {"recipe": {"epochs": 2, "batch_size": 16, "milestones": [0.5]}}
        changes |= {"teachers": ["cnn3x4"], "supernets": ["cnn3x4"]}
        changes |= {"teacher": TEACHER | {"milestones": milestones}, "supernet": SUPERNET | supernet}
        write_params(root / "params.yaml", **changes)

    return write


def route(seed=0, **recipe):
    """Train a teacher of this seed, in the place of any other, and return its file's md5."""
    return checkpoints.file_md5(Study("teacher").teach("cnn3x4", seed=seed, **({"epochs": 2} | recipe)).path)


def key():
    """The key of the supernet that is made now."""
    return json.loads(teach_supernet("cnn3x4").with_suffix(".json").read_text())["key"]


def test_another_route_is_another_supernet_unless_it_begins_from_scratch(given):
    given()
    first = route()
    grown = key()
    assert checkpoints.about(paths.teacher_path("made_up", "supernet", "cnn3x4"))["start"] == first
    given(start="scratch")
    scratch = key()
    assert checkpoints.about(paths.teacher_path("made_up", "supernet", "cnn3x4"))["start"] is None
    assert route(seed=1) != first
    assert key() == scratch != grown
    given()
    assert key() not in (grown, scratch)


def test_without_a_route_nothing_grows(given):
    given()
    with pytest.raises(ConfigError, match=r"cnn3x4 grows from its teacher, and .*cnn3x4\.safetensors is missing") as caught:
        teach_supernet("cnn3x4")
    assert "run `dvc repro teacher@cnn3x4`" in str(caught.value) and "\n" not in str(caught.value)
    given(start="scratch")
    assert teach_supernet("cnn3x4").exists()


def test_what_a_supernet_does_not_say_is_the_teachers(given):
    def recipe():
        return checkpoints.about(teach_supernet("cnn3x4"))["recipe"]

    given(start="scratch")
    plain = recipe()
    assert (plain["epochs"], plain["learning_rate"], plain["milestones"]) == (2, 0.05, [0.5])
    given(start="scratch", milestones=[0.25, 0.75], epochs=1, learning_rate=0.02)
    own = recipe()
    assert (own["epochs"], own["learning_rate"], own["milestones"]) == (1, 0.02, [0.25, 0.75])


def test_a_teacher_has_milestones_of_its_own(given):
    given()
    route(milestones=[0.25])
    assert checkpoints.about(paths.teacher_path("made_up", "route", "cnn3x4"))["recipe"]["milestones"] == [0.25]
    route(milestones=None)
    assert checkpoints.about(paths.teacher_path("made_up", "route", "cnn3x4"))["recipe"]["milestones"] == [0.5]


def test_a_damaged_route_is_named_and_made_anew(given, root, capsys):
    given()
    first = route()
    (kept,) = (root / "store").glob("*/route-*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert route() == first and kept.read_bytes() == whole
    assert "is damaged" in capsys.readouterr().err
