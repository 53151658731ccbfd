"""Findings: their numbers, their conditions, and what becomes of one that does not hold."""

import pytest

from kd.errors import ConfigError
from kd.report import findings
from kd.report.findings import Finding, Number, Seen, load_findings, sentence
from kd.report.tables import read_results
from kd.study.paths import ROOT, STAGES, reports_path

DIGITS = read_results(reports_path("digits") / "results.csv")
SEEN = Seen(DIGITS, {"rco": {"anchors": [7, 8, 30], "cosine": 0.5}, "kd": {"cosine": 0.25}}, "rco")


def said(says, holds="True", strict=True):
    return sentence(Finding(name="a name", says=says, holds=holds), SEEN.names(), "findings/x.yaml, rco", strict)


def mean(table, row):
    return DIGITS[(DIGITS["table"] == table) & (DIGITS["row"] == row)]["top1_last"].mean()


def test_numbers_are_those_of_the_records():
    assert SEEN.top1("kd_main", "KD") == pytest.approx(mean("kd_main", "KD"))
    gap = SEEN.over("kd_main", "KD", "student alone")
    assert gap == pytest.approx(mean("kd_main", "KD") - mean("kd_main", "student alone"))
    assert gap.low == pytest.approx(gap - gap.half) and gap.low < gap < gap.high
    line = SEEN.claim("KD over labels")
    assert line.mean == pytest.approx(float(gap)) and line.verdict in ("supported", "contradicted", "cannot tell")
    assert SEEN.teacher("kd_main") == pytest.approx(DIGITS["teacher_top1"].dropna().mode().iloc[0])
    assert SEEN.cost("kd_main", "KD") == 1 and SEEN.seeds("kd_main", "KD") == 10
    assert SEEN.networks("kd_main") == ("cnn6x16", "cnn3x8")


def test_a_sentence_with_its_numbers():
    assert said("From epoch {fact('anchors')[1]} on, {words(3)} of {len(fact('anchors'))}.") == "From epoch 8 on, three of 3."
    assert said("{top1('kd_main', 'KD'):.1f} % against {top1('kd_main', 'student alone'):.1f} %") == f"{mean('kd_main', 'KD'):.1f} % against {mean('kd_main', 'student alone'):.1f} %"
    assert said("{over('kd_main', 'KD', 'student alone')}").startswith("+3.37 ± ")
    assert said("{max(fact('anchors')[0:2])}") == "8"
    assert str(Number(1, 0.5)) == "1.00 ± 0.50" and str(Number(1, 0.5, sign=True)) == "+1.00 ± 0.50" and str(Number(1)) == "1.00"


def test_a_fact_of_the_place_comes_first():
    assert SEEN.fact("cosine") == 0.5
    with pytest.raises(LookupError, match="2 facts"):
        Seen(DIGITS, {"rco": {"cosine": 1}, "kd": {"cosine": 2}}, "srm").fact("cosine")


@pytest.mark.parametrize(
    ("says", "holds", "words"),
    [
        ("x", "top1('kd_main', 'KD') < 50", "'a name' no longer holds: top1('kd_main', 'KD') < 50"),
        ("{top1('kd_main', 'no such row')}", "True", "cannot be computed (LookupError: kd_main has no row 'no such row' that ran)"),
        ("x", "claim('no such claim').mean > 0", "the study does not test the claim 'no such claim'"),
        ("x", "__import__('os')", "cannot be computed (NameError"),
        ("x", "1 +", "cannot be computed (SyntaxError"),
    ],
)
def test_what_does_not_hold_stops_by_name(says, holds, words):
    with pytest.raises(ConfigError) as error:
        said(says, holds)
    assert words in str(error.value) and str(error.value).startswith("findings/x.yaml, rco: ")
    assert said(says, holds, strict=False) == ""


def test_all_findings_hold_and_stand_where_a_page_reads_them():
    findings.check_findings()
    for path in (ROOT / "findings").glob("*.yaml"):
        found = load_findings(path.stem)
        appendices = [file.stem.partition("_")[2] for file in (ROOT / "notebooks").glob("[0-9][0-9][a-z]_*.ipynb")]
        places = {"readme", "site"} if path.stem == "README" else {"teacher", *STAGES, *appendices, "tables"}
        assert set(found) <= places, path
        for place, listed in found.items():
            assert len({one.name for one in listed}) == len(listed), (path, place)


def test_a_place_that_no_page_reads_is_named(monkeypatch):
    monkeypatch.setattr(findings, "load_findings", lambda name: {"kdd": []})
    with pytest.raises(ConfigError, match=r"no notebook 'kdd' \(did you mean 'kd'\?\)"):
        findings.check_findings()


def test_a_file_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "FILES", tmp_path)
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "digits.yaml").write_text("kd:\n  - {name: x, say: y, holds: 'True'}\n")
    with pytest.raises(ConfigError, match=r"findings/digits.yaml: kd.0: unknown key 'say' \(did you mean 'says'\?\)"):
        load_findings("digits")
    (tmp_path / "findings" / "digits.yaml").write_text("kd: [\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_findings("digits")
    (tmp_path / "findings" / "digits.yaml").write_text("- kd\n")
    with pytest.raises(ConfigError, match="findings/digits.yaml: .* must be a mapping"):
        load_findings("digits")
    finding = "{name: x, says: y, holds: 'True'}"
    (tmp_path / "findings" / "digits.yaml").write_text(f"kd: [{finding}]\nkr: [{finding}, {finding}]\n")
    with pytest.raises(ConfigError, match="findings/digits.yaml: kr: two findings are called 'x'"):
        load_findings("digits")
    assert load_findings("cifar10") == {}
