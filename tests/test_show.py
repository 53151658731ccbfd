"""What the terminal shows: the records behind a row, and the last screen of `make repro`."""

import pytest
from made_up import accuracy_kd_better, made_up_records, record_of, write_runs

from kd.errors import ConfigError
from kd.report import page, show
from kd.report.tables import read_results
from kd.study import store
from kd.study.paths import ROOT

pytest_plugins = ["made_up_root"]


def test_show(repository):
    text = show.show("kd_main", "KD")
    for expected in ("temperature=4.0", "epochs=20", "route md5 tttt", "93.44", "kd_main-KD-2", "md5 dddd"):
        assert expected in text
    assert "versions" not in text  # known only where it was trained
    store.save("p", record_of("kd_main-KD-0"), {"versions": {"torch": "9.9"}})
    assert "  versions    torch 9.9\n" in show.show("kd_main", "KD")
    assert show.show("kd_main", "KD", versions=False) == text
    with pytest.raises(ConfigError, match="did you mean 'student alone'"):
        show.show("kd_main", "studnt alone")
    with pytest.raises(ConfigError, match="not run: stands in the figures of its own training"):
        show.show("common", "teacher, as reported")
    with pytest.raises(ConfigError, match="has no records in profile digits; run `dvc repro combined`"):
        show.show("common", "FitNet")
    with pytest.raises(ConfigError, match="unknown table 'kd_man'.*kd_main"):
        show.show("kd_man", "KD")


def test_a_row_is_found_by_a_part_of_its_name_that_no_other_has():
    rows = ["KD", "KD, 3 x epochs", "greedy search (GS)"]
    assert show.row_called("GS", rows) == "greedy search (GS)" and show.row_called("KD", rows) == "KD"
    assert show.row_called("kd", rows) is None and show.row_called("XX", rows) is None


def test_show_on_a_fresh_clone(repository):
    page.write_reports(repository / "reports" / "digits")
    for path in (repository / "runs" / "digits" / "kd").iterdir():
        path.unlink()
    text = show.show("kd_main", "KD")
    assert "93.44" in text and "kd_main-KD-2" in text and "dvc pull" in text and "tttt" in text
    (repository / "reports" / "digits" / "results.csv").unlink()
    with pytest.raises(ConfigError, match="results.csv is missing; run `make repro`"):
        show.show("kd_main", "KD")


def screen(profile):
    text = show.summary_screen(profile)
    assert len(text.splitlines()) <= 48 and max(map(len, text.splitlines())) <= 100 and "`" not in text and "|" not in text
    return text


def test_the_last_screen_of_a_study_without_the_combined_one(repository):
    page.write_reports(repository / "reports" / "digits")
    text = screen("digits")
    assert text.startswith("Profile digits: 6 students trained on digits.\n") and "big -> small, 3 seeds" in text
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "against student alone" in lines["row"] and "93.22 ± 0.55" in lines["KD"] and "+3.02 ± 0.05  (higher)" in lines["KD"]
    assert lines["student alone"].endswith("–") and "combined" not in text.lower() and "tables.md" in text


def test_the_last_screen_shows_the_common_ground_and_what_the_combined_study_says(repository):
    for table in ("common", "combined"):
        write_runs(repository, made_up_records(accuracy_kd_better, table), stage={"common": "rco"}.get(table, table))
    page.write_reports(repository / "reports" / "digits")
    (repository / "reports" / "digits" / "notebooks").mkdir()
    (repository / "reports" / "digits" / "notebooks" / "01_kd.ipynb").touch()
    text = screen("digits")
    assert "The common ground" in text and "\nFitNet  " in text and "teacher, as reported" not in text
    assert "- Plain KD reaches 93.22 %; 32 other methods" in text and "- So these numbers" in text and "order: 01_kd" in text


@pytest.mark.parametrize("profile", sorted(path.parent.name for path in (ROOT / "reports").glob("*/results.csv")))
def test_the_last_screen_of_the_committed_reports(profile):
    runs = read_results(ROOT / "reports" / profile / "results.csv")
    text = screen(profile)
    for row in runs.loc[runs["table"] == "common", "row"].unique():
        assert f"\n{row} " in text
