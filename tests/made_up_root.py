"""Fixtures: a folder in the repository's place. For `pytest_plugins = ["made_up_root"]`."""

import pytest
from made_up import accuracy_kd_better, made_up_records, write_params, write_runs

from kd.study import paths, store


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder in the repository's place: data, models, runs, reports and the store lie there."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(store, "STORE", tmp_path / "store")
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    return tmp_path


@pytest.fixture
def repository(root, monkeypatch):
    """A repository with records of kd_main and a params.yaml of the digits profile; the reports show three tables."""
    write_runs(root, made_up_records(accuracy_kd_better))
    write_params(root / "params.yaml", profile="digits")
    monkeypatch.setattr("kd.report.tables.names", lambda: ["kd_main", "common", "combined"])
    monkeypatch.setattr("kd.report.page.names", lambda: ["kd_main", "common", "combined"])
    monkeypatch.setattr("kd.report.findings.as_published", lambda: False)  # what is found on digits need not hold of made-up records
    return root


@pytest.fixture
def asks(root):
    """asks(kr={"kr_main": "all"}): a params.yaml in force that asks for these tables of these stages, and for nothing else."""
    return lambda **run: write_params(root / "params.yaml", run={stage: {} for stage in paths.STAGES} | run)
