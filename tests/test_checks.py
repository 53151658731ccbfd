"""Before anything is trained: what a run would stumble over hours later is named at once."""

from contextlib import nullcontext

import pytest
import tiny
import torch
from made_up import write_params

from kd.errors import ConfigError
from kd.models import build
from kd.pipeline import notebook, stage
from kd.pipeline.parameters import checked
from kd.study import paths, plan
from kd.study.checks import check_looked_into, check_runs, route_epochs, smallest_class
from kd.study.parameters import check_name
from kd.study.profiles import compose, names
from kd.study.yaml_files import parse_value

pytest_plugins = ["made_up_root"]
DIGITS = parse_value(compose("digits"))


def check(root, **changes):
    values = {key: DIGITS[key] | value if isinstance(value, dict) and key != "run" else value for key, value in changes.items()}
    write_params(root / "params.yaml", **values)
    check_runs(plan.Planned())


def only(**stages):
    return {stage: {} for stage in paths.STAGES} | stages


WRONG = {
    "rco.anchors": (
        {"rco": {"anchors": 500}, "run": only(rco={"rco_table7": ["one-stage EEI"]})},
        "rco: table rco_table7, row 'one-stage EEI': rco.anchors: 500 anchors, but the route has 30 states; ask for fewer",
    ),
    "a route of few states": ({"teacher": {"every": 15}, "run": only(rco={"rco_table7": ["one-stage EEI"]})}, "rco.anchors: 3 anchors, but the route has 2 states"),
    "rco.first": ({"rco": {"first": 40}, "run": only(rco={"rco_table7": ["greedy search (GS)"]})}, "rco.first: state 40, but the route's 30 states are 0 to 29"),
    "teacher.every": ({"teacher": {"every": 31}}, "teacher.every: 31 must lie between 1 and the teacher's 30 epochs"),
    "pwkd.stages": ({"pwkd": {"stages": 99}}, "pwkd.stages: 99 stages, but the supernet has 4 widths"),
    "supernet.widths": ({"supernet": {"widths": [1.0, 0.5]}}, "widths (1.0, 0.5) must be increasing fractions"),
    "a supernet that cannot be": ({"teachers": ["cnn6x16", "mobilenetv2"], "supernets": ["mobilenetv2"]}, "no supernet for mobilenetv2"),
    "a stage that a network lacks": ({"srm": {"taps": [99]}, "run": only(srm={"srm_cifar100": ["SRM"]})}, "srm: table srm_cifar100, row 'SRM': tap 99: the teacher has"),
    "networks of unlike depth": ({"pairs": {"default": ["cnn6x16", "vgg8"]}, "run": only(iekd={"iekd_main": ["AT"]})}, "row 'AT': taps: teacher and student have 3 and 5 stages"),
    "epochs for ever": ({"recipe": {"epochs": 10**9}}, "recipe.epochs: 1,000,000,000 epochs; at most 100,000"),
    "too few epochs": ({"recipe": {"epochs": 2}}, "epochs"),
    "an untrained teacher": ({"teachers": ["cnn3x8"], "supernets": []}, "its teacher cnn6x16 is not listed under teachers: in params.yaml"),
    "an untrained supernet": ({"supernets": []}, "its teacher cnn6x16 is not listed under supernets:"),
    "an unknown student": ({"pairs": {"default": ["cnn6x16", "cnn3y4"]}}, "cnn3y4"),
    "combined.only": ({"combined": {"only": ["rco * (kd + krr)"]}}, "combined.only: no method 'rco * (kd + krr)' (did you mean 'rco * (kd + kr)'?)"),
    "recipes of a paper": ({"recipes": {"kd": {"epochs": 0}}}, "recipe.epochs: 0 must be greater than 0"),
    "a teacher twice": ({"teachers": ["cnn6x16", "cnn6x16"]}, "teachers: cnn6x16 stands there twice"),
    "a search twice": ({"searches": ["kd", "kr", "kd"]}, "searches: kd stands there twice"),
    "data.watch": ({"data": {"watch": "requirements.txtt"}}, "data.watch: 'requirements.txtt' is not there"),
    "data.source": ({"data": {"name": "imagefolder", "source": "/nowhere/images"}}, "data.source: '/nowhere/images' is not there"),
}  # fmt: skip


@pytest.mark.parametrize("changes, said", WRONG.values(), ids=WRONG)
def test_it_is_named_before_anything_runs(root, changes, said):
    with pytest.raises(ConfigError) as caught:
        check(root, **changes)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_more_images_than_a_class_has_are_named_once_the_data_are_there(root):
    tiny.data().save(root / "images.safetensors")
    assert smallest_class(root / "images.safetensors") == min(tiny.data().labels["train"].bincount().tolist())
    write_params(root / "params.yaml", student_images_per_class=50)
    check_runs(plan.Planned())
    with pytest.raises(ConfigError, match="row 'student alone': 50 training images of each class are asked for .*, and a class has 49; ask for fewer"):
        check_runs(plan.Planned(), 49)


def test_weights_that_are_no_numbers_teach_nobody(root):
    file, weights = root / "cnn6x16.pth", build("cnn6x16", 10, 1).state_dict()
    torch.save(weights, file)
    check(root, teacher={"weights": {"cnn6x16": str(file)}}, run=DIGITS["run"] | {"rco": {}, "pwkd": {}, "combined": {}})
    weights["head.weight"][0, 0] = torch.nan
    torch.save(weights, file)
    with pytest.raises(ConfigError, match=r"teacher.weights: .*cnn6x16.pth: head.weight is not all numbers"):
        check(root, teacher={"weights": {"cnn6x16": str(file)}})
    with pytest.raises(ConfigError, match=r"teacher.weights: .*gone.pth is not there"):
        check(root, teacher={"weights": {"cnn6x16": str(root / "gone.pth")}})


@pytest.mark.parametrize("name", [name for name in names() if name != "imagefolder"])
def test_every_profile_can_begin(root, name):
    values = parse_value(compose(name))
    values["data"] |= {"source": None, "watch": "requirements.txt"}
    write_params(root / "params.yaml", **values)
    check_runs(plan.Planned())
    for method in paths.STAGES:
        check_looked_into(plan.Planned(), method)
    for name in ("teacher", *paths.STAGES):
        path = paths.notebook_path(name)
        checked(notebook.read(path), values[name] | ({"network": "a"} if name == "teacher" else {}), path.name)


def test_states_lie_where_the_route_saves_them():
    assert route_epochs({"epochs": 7, "every": 3}, "a") == [3, 6, 7] and route_epochs({"epochs": 4, "every": 2}, "a") == [2, 4]
    assert route_epochs({"epochs": 4, "every": 2, "weights": {"a": "a.pth"}}, "a") == [1]


def test_a_row_that_a_notebook_looks_into_must_have_been_asked_for(root):
    write_params(root / "params.yaml", **DIGITS | {"run": only(kd={"kd_main": "all"}, kr={"kr_main": ["KR"]}, srm={"srm_cifar100": ["SRM"]})})
    for method in ("kd", "kr", "rco"):  # kr's also looks into KD, which stage kd has run
        check_looked_into(plan.Planned(), method)
    with pytest.raises(ConfigError, match="run.srm: notebook 03_srm looks into row 'SRM, head alone, statistics held' of table srm_probe, which is not"):
        check_looked_into(plan.Planned(), "srm")


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("params.yaml", "kd: {temperature: 4.0}", "kd in params.yaml changed while stage code ran"),
        ("params.yaml", "run: {kr: {kr_main: [KR]}}", "run.kr in params.yaml changed"),
        ("tables/kd/kd_main.yaml", "title: other", "tables/kd/kd_main.yaml changed"),
        ("tables/kd/new.yaml", "title: new", "tables/kd/new.yaml changed"),
        ("params.yaml", "rco: {anchors: 2}", None),
        ("tables/rco/rco_table7.yaml", "title: other", None),
    ],
)
def test_what_a_person_edits_while_a_stage_runs_is_not_taken_for_what_it_read(root, monkeypatch, file, text, said):
    monkeypatch.setattr(stage, "ROOT", root)
    monkeypatch.setenv("KD_PIPELINE", "1")
    monkeypatch.setattr(stage, "study_parameters", lambda: {"kd": {}, "run": "all", "rco": {}} | parse_value((root / "params.yaml").read_text()))
    (root / "dvc.yaml").write_text("stages: {code: {params: [kd, run.kr], deps: [kd, tables/kd]}}")
    for name, begins_as in {"params.yaml": "{}", "tables/kd/kd_main.yaml": "", "tables/rco/rco_table7.yaml": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(begins_as)
    monkeypatch.setattr(stage, "make_programs", lambda: (root / file).write_text(text))
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        stage.run_stage("code")


@pytest.mark.parametrize("name", ["x; touch pwned", "my study", "../x", "-rf", "", "a/b", "$(x)", "a\nb", "é"])
def test_no_name_reaches_a_shell_or_leads_elsewhere(name):
    with pytest.raises(ConfigError, match="must be of letters, digits"):
        check_name(name, "profile")
