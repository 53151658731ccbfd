"""Tables as Markdown: what stands in which cell, and what is said below them."""

import math

import numpy as np
import pandas as pd
from made_up import CONTROL_ACCURACY, CONTROLLED, TABLE, accuracy_kd_better, made_up_records, runs_of
from made_up import TABLE_ACCURACY as ACCURACY

from kd.report.claims import load_claims
from kd.report.markdown import addresses, linked, markdown, plus_minus
from kd.report.summary import controls, summary
from kd.study.records import frame
from kd.study.tables import load_table, table_names


def test_plus_minus():
    assert plus_minus(1.005, 0.5) == "1.00 ± 0.50" and plus_minus(1.0, 0.5, sign=True) == "+1.00 ± 0.50"
    assert plus_minus(-1.0, math.nan, sign=True) == "-1.00" and plus_minus(math.nan, 1.0) == "–"
    assert plus_minus(-0.001, 0.5, sign=True) == plus_minus(0.0, 0.5, sign=True) == "+0.00 ± 0.50" and plus_minus(-0.004, None) == "0.00"
    assert plus_minus(-0.006, math.nan) == "-0.01"


def test_markdown_of_a_made_up_table():
    text = markdown(summary(runs_of(ACCURACY), TABLE), TABLE)
    assert text.startswith("### A made-up table\n\nNothing ran.\n\n|")
    grid = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in grid} == {len(grid[0])}  # every row as wide as the head
    cells = {row[0]: row for row in grid[2:]}
    assert list(cells) == [row["row"] for row in TABLE["rows"] if row["row"] != "never"]
    half = 4.303 * math.sqrt(sum((v - 271 / 3) ** 2 for v in (90, 90, 91)) / 2) / math.sqrt(3)
    assert f"90.33 ± {half:.2f}" in cells["KD"]
    assert any(cell.startswith("+5.07 ± ") for cell in cells["better"]) and "(higher)" in cells["better"]
    assert "99.00" in cells["once"] and "(no interval)" in cells["once"]
    assert "nobody has the data" not in text
    assert "\n\nReported by the papers, not run here (CIFAR-100, big -> small): never: 61.0 [3].\n\n[1] first source. [2] " in text
    assert "after the last epoch, on digits: mean and 95 % t-interval over 1 or 3 seeds, 20 epochs each; big -> small." in text
    assert "against KD, over the seeds that both rows have; 3 comparisons" in text
    assert cells["KD"][-1] == "not verified"
    # a source is numbered once, at its first use, and every number used is explained
    assert [cells[row][-1] for row in ("student alone", "better", "alike")] == ["60.5 [1]", "63.0 [2] †", "62.0 [1]"]
    for number, source in ((1, "first source"), (2, "second source"), (3, "third source")):
        assert text.count(source) == 1 and f"[{number}] {source}" in text
    assert "† known only from a third party" in text and "CIFAR-100, big -> small" in text
    assert "nan" not in text and "None" not in text
    assert "3 comparisons" in text  # what was tested, not what was printed


def test_markdown_without_tiers_or_differences():
    table = {"name": "made_up", "title": "T", "rows": [{"row": "KD"}]}
    text = markdown(summary(runs_of({"KD": {0: 90.0}}), table), table)
    assert "†" not in text and "comparisons" not in text and "nan" not in text and "90.00" in text


def test_a_claim_over_more_epochs_says_so_in_its_table():
    runs = runs_of(ACCURACY)
    runs.loc[runs["row"] == "better", "epochs"] = 60
    text = markdown(summary(runs, TABLE), TABLE)
    (line,) = [line for line in text.splitlines() if line.startswith("| better |")]
    assert line.startswith("| better | 60 | 3 | 95.40 ± ") and "| (higher), 60 epochs against 20 |" in line
    assert text.count("epochs against") == 1 and "20 epochs each" not in text


def test_controls_stand_in_a_table_of_their_own():
    runs = runs_of(CONTROL_ACCURACY)
    lines, further = summary(runs, CONTROLLED), controls(runs, CONTROLLED)
    text = markdown(lines, CONTROLLED, comparisons=further)
    main, _, rest = text.partition("| row | against | paired difference | seeds | verdict |")
    differences = [93.0 - 91.0, 93.9 - 92.1, 94.6 - 91.5]
    half = 4.303 * np.std(differences, ddof=1) / math.sqrt(3)
    assert f"| both | KD, longer | +{np.mean(differences):.2f} ± {half:.2f} | 3 |" in rest and "| one | KD, longer | +0.25 ± " in rest
    assert rest.count("\n| ") == 3 and "without the ingredient under test; other rows stand here because a claim sets the two against each other." in rest and "- KD, longer: a control." in rest
    assert "left out" not in text.replace("against what is left out", "") and "against KD, over" in main
    # the table itself has its own family, as if there were no controls
    plain = CONTROLLED | {"rows": [{k: v for k, v in row.items() if k != "control"} for row in CONTROLLED["rows"]]}
    pd.testing.assert_frame_equal(lines, summary(runs, plain))
    # where rows stand only for a claim, nothing is said of controls
    rivals = CONTROLLED | {"rows": [{**{k: v for k, v in row.items() if k != "control"}, "rival": row.get("control", [])} for row in CONTROLLED["rows"]]}
    text = markdown(lines, rivals, controls(runs, rivals))
    assert "\n\nRows stand here because a claim sets them against each other." in text and "the ingredient under test" not in text
    assert "| against |" not in markdown(lines, CONTROLLED) and not len(controls(runs, plain))
    assert "| against |" not in markdown(lines, plain, comparisons=controls(runs, plain))
    assert markdown(lines[lines["n"] == 0], CONTROLLED) == ""
    both = pd.concat([further, further.assign(pair="else -> where")])
    assert "| else -> where | both | KD | +" in markdown(lines, CONTROLLED, comparisons=both)


def test_reported_figures_of_other_pairs_do_not_look_measured():
    table = load_table("common")
    runs = frame(made_up_records(accuracy_kd_better, "common", pair="cnn6x16 -> cnn3x4"), "digits")
    text = markdown(summary(runs, table), table)
    measured, elsewhere = text.split("**Reported elsewhere, not measured here**")
    assert "70.66" not in measured and "| reported |" not in measured
    assert "| KD | 70.66 [1] | 73.33 [1] | 74.92 [1] | 72.98 [1] | 67.35 [1] |" in elsewhere
    assert "| AT | 70.55 [1] | 73.44 [1] | 74.08 [2] | 71.43 [3] | 58.58 [1] |" in elsewhere
    # on a pair that has reported figures they stand in the row, and only the other pairs' stand below
    runs = frame(made_up_records(accuracy_kd_better, "common", pair="resnet56 -> resnet20"), "cifar100")
    measured, elsewhere = markdown(summary(runs, table), table).split("**Reported elsewhere, not measured here**")
    assert "| 70.66 [1] |" in measured and "70.66" not in elsewhere and "73.33" in elsewhere


def test_markdown_keeps_columns_that_differ():
    table = {"name": "t", "title": "T", "rows": [{"row": "KD"}, {"row": "a | b", "note": "longer."}]}
    lines = pd.DataFrame({"profile": "p", "table": "t", "row": ["KD", "a | b"], "pair": "x -> y", "seed": 0, "epochs": [20, 40], "top1_last": 90.0})
    text = markdown(summary(lines, table), table)
    assert "| row | epochs |" in text and "| KD | 20 |" in text and "a \\| b | 40 |" in text and "- a | b: longer.\n" in text
    text = markdown(summary(lines.assign(epochs=20), table), table)
    assert "| epochs |" not in text and "20 epochs each" in text


def test_several_pairs_get_a_table_each():
    table = load_table("kd_main")
    made = [r for pair in ("a -> b", "c -> d") for r in made_up_records(accuracy_kd_better, pair=pair)]
    text = markdown(summary(frame(made, "p"), table), table)
    assert text.index("**a -> b**") < text.index("**c -> d**") and text.count("| row |") == 2


def test_every_source_has_an_address_or_is_listed_as_having_none():
    figures = [row.get("reported") or {} for name in table_names() for row in load_table(name)["rows"]]
    figures = [figure for several in figures for figure in ([several] if "value" in several else several.values())]
    found = {figure["source"] for figure in figures} | {claim["source"] for claim in load_claims().values() if claim["source"]}
    assert len(found) > 10
    for source in found:
        assert sum(source.startswith(beginning) for beginning in addresses()) == 1, source
    for beginning in addresses():
        assert any(source.startswith(beginning) for source in found), f"nothing begins as {beginning}"


def test_a_source_is_linked_where_it_begins():
    assert linked("RCO, ICCV 2019, Table 7: x") == "[RCO](https://arxiv.org/abs/1904.09149), ICCV 2019, Table 7: x"
    assert linked("paperswithcode, page of the paper") == "paperswithcode, page of the paper" and linked("elsewhere") == "elsewhere"
