"""The reports: results.csv, tables.md and figures, from the records alone and the same bytes every time."""

import pandas as pd
from made_up import made_up_records, write_params, write_runs

from kd import checkpoints
from kd.models import Supernet, build
from kd.report import page
from kd.study.paths import STAGES
from kd.study.records import COLUMNS
from kd.study.tables import load_table

ONLY_KD = {stage: {} for stage in STAGES} | {"kd": "all"}
pytest_plugins = ["made_up_root"]


def test_reports(repository):
    write_params(repository / "params.yaml", profile="digits", run=ONLY_KD)
    folder = repository / "reports" / "digits"
    page.write_reports(folder)
    runs = pd.read_csv(folder / "results.csv")
    assert list(runs.columns) == list(COLUMNS) and len(runs) == 6
    assert runs["top1_last"].tolist() == [93.0, 93.21, 93.44, 90.0, 90.2, 90.4]
    text = (folder / "tables.md").read_text()
    for column in COLUMNS:
        assert f"| {column} |" in text
    assert "](#kd_main)" in text and '<a id="kd_main">' in text
    more = text.partition("## More tables on request")[2]
    for name in ("common", "combined"):
        title = load_table(name)["title"]
        assert f"](#{name})" not in text and text.count(title) == 1 and f'| <a id="{name}"></a>{title} | `combined: {{{name}: all}}` |' in more
    assert "- [More tables on request](#more)\n" in text and "not run on" not in text and "did not run" not in text
    for row in load_table("kd_main")["rows"]:
        assert f"| {row['row']} |" in text
    assert [path.name for path in (folder / "figures").iterdir()] == ["kd_main.png"]
    assert "93.22" in text and (folder / "figures" / "kd_main.png").stat().st_size > 1000
    for line in text.splitlines():
        if line.startswith("!["):
            assert (folder / line.split("](")[1].rstrip(")")).exists()
    assert "- **These runs are of an edited params.yaml.**" in text
    before = {path.name: path.read_bytes() for path in folder.rglob("*.*")}
    page.write_reports(folder)
    assert before == {path.name: path.read_bytes() for path in folder.rglob("*.*")}


def test_a_study_under_way_says_what_is_still_to_run(repository):
    page.write_reports(repository / "out")  # of the default profile's tables kd_main alone has runs
    text = (repository / "out" / "tables.md").read_text()
    titles = [load_table(name)["title"] for name in ("common", "combined")]
    assert f"**Still to run in this study**: {', '.join(titles)}.\n" in text and "More tables on request" not in text


def test_tables_on_request_keep_what_the_papers_report():
    no_runs = pd.DataFrame(columns=["table", "pair", "row", "method", "epochs"])
    text = page.on_request(["srm_imagenet", "kd_temperature", "iekd_main"], no_runs)
    assert "| `srm: {srm_imagenet: all}` | ImageNet, ResNet-34 -> ResNet-18; SRM: 71.21 [1] |" in text
    assert "| `kd: {kd_temperature: all}` | – |" in text and "IE-FT: 93.47 (error 6.53) [4] †" in text
    assert "\n\n[1] [viebboy/SRM README.md](https://github.com/viebboy/SRM). [2] " in text and "† known only" in text


def test_reports_of_the_combined_study(repository):
    write_runs(repository, made_up_records(lambda method, seed: 90 + seed + len(method) * 0.01, "combined"), stage="combined")
    folder = repository / "out"
    page.write_reports(folder)
    text = (folder / "tables.md").read_text()
    assert "In words" in text and "other methods are compared with it" in text and "figures/combined.png" in text


def made_up_teacher(root, kind, network, accuracy, profile="p"):
    """A teacher's file with these test accuracies, of its states or widths."""
    module = build(network, 10, 1)
    about = {"network": network, "classes": 10, "channels": 1}
    state = {"accuracy": [{"validation": 1.0, "test": value} for value in accuracy], "curve": []}
    if kind == "route":
        state |= {"states": [module.state_dict()] * len(accuracy), "epochs": list(range(1, len(accuracy) + 1))}
    else:
        about["widths"] = [0.5, 1.0]
        state["weights"] = Supernet(module, about["widths"]).state_dict()
    path = root / "models" / profile / f"{kind}s" / f"{network}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_state(path, state, kind=kind, **about)


def test_teachers_in_words(root):
    params = {"profile": "p", "teachers": ["cnn3x4", "cnn3x2", "cnn6x4"], "supernets": ["cnn3x4"]}
    assert page.teachers_in_words(params) == ""  # none is trained yet
    made_up_teacher(root, "route", "cnn3x4", [50.0, 97.125, 96.376])
    made_up_teacher(root, "route", "cnn6x4", [98.5])
    begin = "The teachers themselves, converged, on the same test images: "
    assert page.teachers_in_words(params) == f"{begin}cnn3x4 96.38 %, cnn6x4 98.50 %."  # the last state's, not the best; none of cnn3x2
    made_up_teacher(root, "supernet", "cnn3x4", [91.0, 95.0])
    assert page.teachers_in_words(params) == f"{begin}cnn3x4 96.38 %, cnn6x4 98.50 %, cnn3x4 as a supernet at full width 95.00 %."
    assert page.teachers_in_words({"profile": "p", "supernets": ["cnn3x4"]}) == f"{begin}cnn3x4 as a supernet at full width 95.00 %."
    assert page.teachers_in_words(params | {"profile": "q"}) == page.teachers_in_words({"profile": "p"}) == ""


def test_the_reports_name_the_teachers(repository):
    page.write_reports(repository / "out")
    assert "The teachers themselves" not in (repository / "out" / "tables.md").read_text()
    made_up_teacher(repository, "route", "cnn3x4", [90.0, 97.0], "digits")
    write_params(repository / "params.yaml", profile="digits", teachers=["cnn3x4"], supernets=["cnn3x4"], run=ONLY_KD)
    page.write_reports(repository / "out")
    text = (repository / "out" / "tables.md").read_text()
    assert "\n\nThe teachers themselves, converged, on the same test images: cnn3x4 97.00 %.\n\n- **Knowledge distillation**" in text
