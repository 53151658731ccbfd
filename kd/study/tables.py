"""Table files: which rows a table has, and which of them a study runs."""

from typing import Any, Literal

from pydantic import create_model

from kd.errors import ConfigError, Positive, PositiveInt, Section, nearest, repeated, several, validated
from kd.methods import CURRICULA, KNOWLEDGE
from kd.study.paths import FILES, STAGES
from kd.study.records import method_name
from kd.study.yaml_files import read_yaml


class Figure(Section):
    """A figure that a paper or repository reports: its value, how well it is known (tier), and where it stands."""

    value: float | str
    tier: Literal["A", "B", "C"]
    source: str


ParametersOfMethods = create_model("ParametersOfMethods", __base__=Section, **{name: (dict[str, Any], {}) for name in (*KNOWLEDGE, *CURRICULA)})


class RowOfTable(Section):
    """A row: a method with its parameters, which stand under the method's name, and what is different from the rest of the table."""

    row: str
    control: str | several(str) = ()  # rows without the ingredient under test
    rival: str | several(str) = ()  # other rows that a claim sets it against
    knowledge: several(Literal[tuple(KNOWLEDGE)]) = ("kd",)
    curriculum: Literal[tuple(CURRICULA)] = "fixed"
    epochs: Positive = 1  # times the recipe's
    seeds: Literal["main", "grid"] | None = None
    recipe: dict[str, Any] = {}
    images_per_class: PositiveInt | None = None
    reported: Figure | dict[str, Figure] = {}  # one, or one for each of several pairs
    not_run: str = ""  # why nobody can run it
    note: str = ""


Row = create_model("Row", __base__=RowOfTable, **{name: (dict[str, Any], {}) for name in (*KNOWLEDGE, *CURRICULA)})


class Grid(Section):
    """Every curriculum times every set of knowledge, a row each."""

    curricula: several(Literal[tuple(CURRICULA)])
    knowledge: several(several(Literal[tuple(KNOWLEDGE)]))


class Table(Section):
    """A file of tables/."""

    title: str
    caption: str = ""
    paper: Literal["KD", "KR", "SRM", "RCO", "IEKD", "PWKD", "combined"]  # whose pairs and recipes it takes
    baseline: str = "KD"
    reported_for: str = ""
    seeds: Literal["main", "grid"] = "main"
    parameters: ParametersOfMethods = ParametersOfMethods()
    shared: Any = None  # what rows repeat, for YAML's anchors
    rows: several(Row) = ()
    grid: Grid | None = None


def table_paths():
    """{name: path} of every table's file, by stage as the methods are taught: tables/STAGE/NAME.yaml."""
    return {path.stem: path for stage in STAGES for path in sorted((FILES / "tables" / stage).glob("*.yaml"))}


def table_names(stage=None):
    """The names of all tables, or of a stage's."""
    return [name for name, path in table_paths().items() if stage in (None, path.parent.name)]


def check_tables(asked, place=""):
    """Raise ConfigError for a name that tables/ lacks; `place` says where it was asked for."""
    names = table_names()
    for name in asked:
        if name not in names:
            raise ConfigError(f"{place}unknown table {name!r}{nearest(name, names)}; tables/ has {', '.join(names)}")


def load_table(name: str) -> dict[str, Any]:
    """The table `name` from its file, with its name and stage. Unknown names, keys and repeated rows raise ConfigError."""
    check_tables([name])
    path = table_paths()[name]
    place = path.relative_to(FILES).as_posix()
    table = read_yaml(path, place)
    validated(Table, table, place)
    table["rows"] = [*table.get("rows", []), *grid_rows(table.pop("grid", None))]
    names = [row["row"] for row in table["rows"]]
    if not names:
        raise ConfigError(f"{place}: has no rows; list some under rows:, or give a grid:")
    if twice := repeated(names):
        raise ConfigError(f"{place}: row {twice!r} stands there twice")
    if (baseline := table.get("baseline", names[0])) not in names:
        raise ConfigError(f"{place}: no row {baseline!r} to be its baseline{nearest(baseline, names)}; there are {', '.join(names)}")
    for row in table["rows"]:
        knowledge = row.get("knowledge", ["kd"])
        if twice := repeated(knowledge):
            raise ConfigError(f"{place}, row {row['row']!r}: knowledge: {twice!r} stands there twice; a sum takes each once")
        methods = {*knowledge, row.get("curriculum", "fixed")}
        for method in (name for name in (*KNOWLEDGE, *CURRICULA) if name in row and name not in methods):
            raise ConfigError(f"{place}, row {row['row']!r}: {method}: changes a method that the row does not have; it has {', '.join(sorted(methods))}")
        for key in ("control", "rival"):
            row[key] = [row[key]] if isinstance(row.get(key), str) else list(row.get(key, []))
            for other in row[key]:
                if other not in names:
                    raise ConfigError(f"{place}, row {row['row']!r}: no row {other!r} to be its {key}{nearest(other, names)}")
    return {"name": name, "stage": path.parent.name, **table}


def asked_rows(table, params):
    """Names of the table's rows that the parameters have run, under `run:`."""
    rows, stage = [row["row"] for row in table["rows"] if "not_run" not in row], table["stage"]
    chosen = (params.get("run") or {}).get(stage, "all")
    if chosen != "all":
        check_tables(chosen, f"run.{stage}: ")
        chosen = chosen.get(table["name"], [])
    if chosen == "all":
        return rows
    for row in chosen:
        if row not in rows:
            raise ConfigError(f"run.{stage}.{table['name']}: no row {row!r}{nearest(row, rows)}; there are {', '.join(rows)}")
    return [row for row in rows if row in chosen]


def grid_rows(grid):
    """The rows of a table's `grid: {curricula: [...], knowledge: [[...], ...]}`: every curriculum times every set of knowledge."""
    methods = [{"knowledge": k, "curriculum": c} for c in grid["curricula"] for k in grid["knowledge"]] if grid else []
    return [{"row": method_name(method), **method} for method in methods]
