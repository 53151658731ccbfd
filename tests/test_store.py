"""The store of finished runs: what is known is never trained, what is damaged is."""

import json

import pytest
import torch

from kd import checkpoints, program
from kd.errors import ConfigError
from kd.study import store
from kd.study.clean import clean


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STORE", tmp_path / "store")
    return tmp_path / "store"


def record(key="k1", profile="digits"):
    return {"key": key, "run": {"profile": profile, "student": "cnn3x4", "seed": 0}, "top1_last": 93.0}


def test_what_was_saved_is_known(empty):
    store.save("p1", record(), {"seconds": 2.0}, {"student": {"w": torch.ones(2)}})
    assert store.load("p1", "k1", weights=True) == {"record": {**record(), "program": "p1"}, "machine": {"seconds": 2.0}}
    assert store.load("p2", "k1") is None and store.load("p1", "k2") is None


def test_without_weights_it_is_known_only_to_those_who_need_none(empty):
    store.save("p1", record(), {})
    assert store.load("p1", "k1") and store.load("p1", "k1", weights=True) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"record": {"key": "other"}, "machine": {}}', '{"record": {"key": "k1"}}', "\x00"])
def test_a_damaged_entry_is_not_known(empty, content):
    store.save("p1", record(), {})
    (empty / "p1" / "k1.json").write_text(content)
    assert store.load("p1", "k1") is None


def test_a_folder_in_a_records_place_is_named_before_anything_is_trained(empty):
    (empty / "p1" / "k1.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="k1.json is a folder, not a record; delete it"):
        store.load("p1", "k1")


def test_saving_ends_what_was_kept_for_going_on(empty):
    running = empty / "p1" / "k1.running.safetensors"
    running.parent.mkdir(parents=True)
    running.write_bytes(b"half a run")
    store.save("p1", record(), {})
    assert not running.exists()


def test_cleaning_removes_what_nothing_asks_for_and_counts_the_rest(empty, monkeypatch):
    class OfDigits:
        profile = "digits"

    monkeypatch.setattr("kd.study.clean.Study", lambda stage: OfDigits())
    monkeypatch.setattr("kd.study.clean.asked_for", lambda study: {("p1", "k1")})
    monkeypatch.setattr(store, "training_md5", lambda methods: "p1")
    store.save("p1", record(), {}, {"student": {"w": torch.ones(2)}})
    store.save("p0", record(), {})  # of an earlier program
    store.save("p1", record("k2"), {})  # of a row that is no more
    store.save("p1", record("k3", "cifar100"), {})
    for folder in ("p0", "p1"):
        (empty / folder / "route-r1.safetensors").write_bytes(b"weights")
        (empty / folder / "route-r1.json").write_text(json.dumps({"profile": "digits"}))
    said = clean()
    assert "cifar100" in said and "--prune would remove 3 entries" in said and store.load("p0", "k1")
    assert "removed 3 entries" in clean(prune=True)
    left = sorted(path.relative_to(empty).as_posix() for path in empty.rglob("*") if path.is_file())
    assert left == ["p1/k1.json", "p1/k1.weights.safetensors", "p1/k3.json", "p1/route-r1.json", "p1/route-r1.safetensors"]


def test_a_method_is_of_its_own_runs_program_alone(monkeypatch):
    def change(name):
        """training_md5 of two methods after a change of a module's program."""
        store.training_md5.cache_clear()
        true = program.program_of
        with monkeypatch.context() as patch:
            patch.setattr(program, "program_of", lambda path: true(path) + ("x = 1\n" if path == program.file_of(name) else ""))
            return store.training_md5(("kr", "fixed")), store.training_md5(("kd", "rco"))

    store.training_md5.cache_clear()
    before = store.training_md5(("kr", "fixed")), store.training_md5(("kd", "rco"))
    assert [a != b for a, b in zip(before, change("kd.methods.kr"), strict=True)] == [True, False]
    assert [a != b for a, b in zip(before, change("kd.methods.rco"), strict=True)] == [False, True]
    assert [a != b for a, b in zip(before, change("kd.training"), strict=True)] == [True, True]
    assert [a != b for a, b in zip(before, change("kd.report.figures"), strict=True)] == [False, False]
    store.training_md5.cache_clear()


def test_damaged_weights_and_records_are_named_and_made_anew(empty, capsys):
    store.save("p1", record(), {}, {"student": {"w": torch.ones(2)}})
    weights, entry = empty / "p1" / "k1.weights.safetensors", empty / "p1" / "k1.json"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    assert store.load("p1", "k1") and store.load("p1", "k1", weights=True) is None and not weights.exists()
    assert "k1.weights.safetensors is damaged" in capsys.readouterr().err
    entry.write_text(entry.read_text().replace("93.0", "98.0"))
    assert store.load("p1", "k1") is None and "k1.json is damaged" in capsys.readouterr().err


def test_a_damaged_record_that_dvc_has_kept_is_left_out(empty, tmp_path, monkeypatch, capsys):
    kept = {"runs/digits/kd/records.jsonl": b'{"key": "k0", "prog\n[]\n\xff\n' + json.dumps({**record(), "program": "p1"}).encode() + b"\n"}
    monkeypatch.setattr(store, "ROOT", tmp_path)
    monkeypatch.setattr(store, "runs_path", lambda profile, stage: tmp_path / "runs" / profile / stage)
    monkeypatch.setattr(store, "files_of_dvc", lambda: None)
    monkeypatch.setattr(store, "read_from_dvc", lambda files, name: kept.get(name))
    assert store.absorb("digits") == 1 and store.load("p1", "k1")
    assert capsys.readouterr().err.count("a record of runs/digits/kd/records.jsonl is damaged; its run is made anew") == 3


def test_weights_of_an_older_kd_are_kept_where_dvc_knows_them(empty, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    store.save("p1", record(), {}, {"student": {"w": torch.ones(2)}})
    path = empty / "p1" / "k1.weights.safetensors"
    new = path.read_bytes()
    begin = 8 + len(checkpoints.HEADER)
    old = (int.from_bytes(new[:8], "little") - 48).to_bytes(8, "little") + new[8:begin] + new[begin + 48 :]
    md5 = checkpoints.file_md5(path)
    path.write_bytes(old)
    kept = tmp_path / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(old)
    assert store.load("p1", "k1", weights=True) and path.read_bytes() == new
    path.write_bytes(old)
    kept.unlink()
    assert store.load("p1", "k1", weights=True) is None and "has no checksum" in capsys.readouterr().err
