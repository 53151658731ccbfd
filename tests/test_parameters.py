"""params.yaml: whatever is wrong in it is named in one line, before anything is trained or removed."""

import copy

import pytest

from kd.errors import ConfigError
from kd.study.parameters import check_study, load_parameters, study_parameters
from kd.study.profiles import compose
from kd.study.yaml_files import parse_value

DIGITS = parse_value(compose("digits"))

WRONG = {
    "seedz: 5": (lambda v: v.update(seedz=v.pop("seeds")), "unknown key 'seedz' (did you mean 'seeds'?)"),
    "no profile": (lambda v: v.pop("profile"), "profile: missing"),
    "a profile for the shell": (lambda v: v.update(profile="x; touch pwned"), "letters, digits"),
    "no data": (lambda v: v.update(data=None), "data: None must be a mapping"),
    "data without a name": (lambda v: v["data"].pop("name"), "data.name: unknown None"),
    "data.sise": (lambda v: v["data"].update(sise=3), "data: unknown 'sise' (did you mean 'size'?)"),
    "data.validation": (lambda v: v["data"].update(validation="257"), "data.validation: '257' must be a whole number"),
    "data.flip": (lambda v: v["data"].update(flip="no"), "data.flip: 'no' must be true or false"),
    "more seeds than the tables have": (lambda v: v.update(seeds=10**9), "seeds: 1000000000 must be less than or equal to 1000"),
    "epochs for ever": (lambda v: v["teacher"].update(epochs=10**9), "teacher.epochs: 1000000000 must be less than or equal to 100000"),
    "teacher.seed": (lambda v: v["teacher"].update(seed=-1), "teacher.seed: -1 must be greater than or equal to 0"),
    "no pair": (lambda v: v["pairs"].update(kd=[]), "pairs.kd: [] must be [teacher, student]"),
    "two seeds in letters": (lambda v: v.update(seeds="two"), "seeds: 'two' must be a whole number"),
    "no seeds": (lambda v: v.update(grid_seeds=0), "grid_seeds: 0 must be greater than 0"),
    "teacher.sed": (lambda v: v["teacher"].update(sed=1), "teacher: unknown key 'sed' (did you mean 'seed'?)"),
    "no epochs": (lambda v: v["recipe"].update(epochs=0), "recipe.epochs: 0"),
    "supernet.widths alone": (lambda v: v.update(supernet={"widths": [1.0]}), "supernet.distil_in_place: missing"),
    "run: all": (lambda v: v.update(run="all"), "run: 'all' must be a mapping"),
    "run.iekdd": (lambda v: v["run"].update(iekdd="all"), "run: unknown 'iekdd' (did you mean 'iekd'?)"),
    "run.kd: [kd_main]": (lambda v: v["run"].update(kd=["kd_main"]), "run.kd"),
    "run.kd.kd_mian": (lambda v: v["run"].update(kd={"kd_mian": "all"}), "did you mean 'kd_main'"),
    "run.kd.kd_main.[KDD]": (lambda v: v["run"].update(kd={"kd_main": ["KDD"]}), "did you mean 'KD'"),
    "searches: [krr]": (lambda v: v.update(searches=["krr"]), "searches: unknown 'krr' (did you mean 'kr'?)"),
    "pairs.defualt": (lambda v: v["pairs"].update(defualt=v["pairs"].pop("default")), "pairs: unknown 'defualt'"),
    "half a pair": (lambda v: v["pairs"].update(default=["cnn6x16"]), "must be [teacher, student]"),
    "recipes.srmm": (lambda v: v.update(recipes={"srmm": {}}), "srmm: no such network"),
    "teachers: [cn6x16]": (lambda v: v.update(teachers=["cn6x16"]), "no such network"),
    "a supernet without its teacher": (lambda v: v.update(supernets=["cnn3x4"]), "supernets: cnn3x4 is not among teachers"),
    "supernet.start": (lambda v: v["supernet"].update(start="techer"), "'teacher' or 'scratch' (did you mean 'teacher'?)"),
    "supernet.epochs": (lambda v: v["supernet"].update(epochs=0), "supernet.epochs: 0 must be greater than 0"),
    "teacher.milestones": (lambda v: v["teacher"].update(milestones=[0.5, 1.5]), "teacher.milestones"),
    "kd.temprature": (lambda v: v["kd"].update(temprature=1.0), "kd: unknown parameter 'temprature' (did you mean 'temperature'?)"),
    "kd.temperature": (lambda v: v["kd"].update(temperature=-1.0), "kd.temperature: -1.0 must be greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("change, said", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(change, said):
    values = copy.deepcopy(DIGITS)
    change(values)
    with pytest.raises(ConfigError) as caught:
        check_study(values, "params.yaml")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_right_stays_as_it_is():
    values = copy.deepcopy(DIGITS)
    assert check_study(values, "params.yaml") is values and values == DIGITS


@pytest.mark.parametrize("text, said", [("seeds: [1", "not YAML"), ("a: 1\na: 2", "not YAML, line 2: found duplicate key"), ("[" * 1500 + "]" * 1500, "nested too deeply"), ("", "missing"), ("- 1", "a mapping"), ("caf\udce9", "cannot be read")])
def test_a_file_that_is_no_parameters_is_named(text, said, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setenv("KD_PARAMS", str(tmp_path / "params.yaml"))
    with pytest.raises(ConfigError, match=said):
        study_parameters()


def test_a_section_of_a_file(tmp_path):
    (tmp_path / "p.yaml").write_text("a: {b: {c: 1}}\n")
    assert load_parameters(f"{tmp_path}/p.yaml:a.b") == {"c": 1}
    with pytest.raises(ConfigError, match="has no section 'a.d'"):
        load_parameters(f"{tmp_path}/p.yaml:a.d")
