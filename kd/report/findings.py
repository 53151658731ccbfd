"""Findings: what came out of a study, in sentences that are tested as code is.

findings/PROFILE.yaml has them by place, a stage's name or `tables`; findings/README.yaml those of several studies:

    rco:
      - name: the route does not pay
        says: "Along the route a student is {over('rco_headline', 'RCO, one-stage EEI', 'KD')} points better than ..."
        holds: claim('RCO over KD').verdict == 'contradicted'

In braces, and in `holds`, stand Python expressions over what `Seen` offers. A finding that does not hold stops its page, by name.
"""

import math
import re
from functools import cached_property

from kd.errors import ConfigError, Section, nearest, repeated, several, validated
from kd.report import claims
from kd.report.markdown import plus_minus
from kd.report.summary import summary
from kd.report.tables import read_results
from kd.statistics import paired
from kd.study.paths import FILES, ROOT, reports_path
from kd.study.profiles import unedited
from kd.study.records import read_json
from kd.study.tables import load_table
from kd.study.yaml_files import read_yaml

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BUILT_IN = {f.__name__: f for f in (abs, all, any, enumerate, len, max, min, range, round, sorted, sum, zip)}
EXPRESSION = re.compile(r"\{([^{}]+?)(?::([^{}:'\"()\[\]]+))?\}")


class Finding(Section):
    """A sentence, and the condition under which it is true."""

    name: str
    says: str
    holds: str


class Number(float):
    """A mean with half of its 95 % interval (nan without one), in the unit of what it is of; str() has both."""

    def __new__(cls, mean, half=math.nan, sign=False):
        number = super().__new__(cls, mean)
        number.half, number.sign = float(half), sign
        return number

    @property
    def low(self):
        return self - self.half

    @property
    def high(self):
        return self + self.half

    def __str__(self):
        return plus_minus(float(self), self.half, self.sign)

    def __format__(self, spec):
        return format(float(self), spec) if spec else str(self)


class Judged:
    """A claim in a study: the columns of kd.report.claims.judge as attributes; str() has the effect, in points."""

    def __init__(self, line):
        vars(self).update(line)

    def __str__(self):
        return plus_minus(self.mean, self.half_width, sign=True)


class Seen:
    """What findings may speak of, from a study's committed results.

    runs: the DataFrame of results.csv. facts: {stage: {name: value}}, what notebooks saw (facts.json). place: the stage whose
    facts are meant where several have one of a name. Everything is of the table's first pair of networks.
    """

    def __init__(self, runs, facts=None, place=""):
        self.runs, self.facts, self.place, self.tables = runs, facts or {}, place, {}

    def _lines(self, table):
        if table not in self.tables:
            mine = self.runs[self.runs["table"] == table]
            first = mine[mine["pair"] == mine["pair"].iloc[0]] if len(mine) else mine
            self.tables[table] = {line["row"]: line for line in summary(first, load_table(table)).to_dict("records")}
        return self.tables[table]

    def _line(self, table, row):
        line = self._lines(table).get(row)
        if line is None or not line["n"]:
            raise LookupError(f"{table} has no row {row!r} that ran")
        return line

    def _accuracy(self, table, row):
        self._line(table, row)
        mine = self.runs[(self.runs["table"] == table) & (self.runs["row"] == row)]
        return mine[mine["pair"] == mine["pair"].iloc[0]].set_index("seed")["top1_last"]

    @cached_property
    def _judged(self):
        return {line["claim"]: Judged(line) for line in claims.judge(self.runs).to_dict("records")}

    def top1(self, table, row):
        """Test accuracy of a row after the last epoch, in percent."""
        line = self._line(table, row)
        return Number(line["mean"], line["interval"])

    def over(self, table, row, other):
        """A row's accuracy over another's, paired by seed, in points."""
        mean, half, *_ = paired(self._accuracy(table, row), self._accuracy(table, other))
        return Number(mean, half, sign=True)

    def claim(self, name):
        """What the study says of a claim; LookupError where it does not test it."""
        if name not in self._judged:
            raise LookupError(f"the study does not test the claim {name!r}")
        return self._judged[name]

    def claims(self):
        """The names of the claims that the study tests."""
        return list(self._judged)

    def teacher(self, table):
        """Test accuracy of a table's teacher, in percent."""
        return Number(next(line["mean"] for row, line in self._lines(table).items() if row.startswith("the teacher")))

    def cost(self, table, row):
        """Multiply-adds of training over those of plain KD."""
        return self._line(table, row)["cost"]

    def epochs(self, table, row):
        return round(self._line(table, row)["epochs"])

    def seeds(self, table, row):
        return self._line(table, row)["n"]

    def networks(self, table):
        """(teacher, student), the names of their networks."""
        return tuple(self.runs.loc[self.runs["table"] == table, "pair"].iloc[0].split(" -> "))

    def fact(self, name):
        """What a notebook saw (kd.Study.saw): of this place, else of the one stage that saw something of this name."""
        found = [facts[name] for stage, facts in self.facts.items() if name in facts and (stage == self.place or name not in self.facts.get(self.place, {}))]
        if len(found) != 1:
            raise LookupError(f"{len(found)} facts are called {name!r}")
        return found[0]

    def names(self):
        """The names that expressions may use."""
        mine = ("top1", "over", "claim", "claims", "teacher", "cost", "epochs", "seeds", "networks", "fact")
        return {**BUILT_IN, "words": words, **{name: getattr(self, name) for name in mine}}


def words(number):
    """3 -> "three"; what is above twelve stays a number."""
    return WORDS[number] if 0 <= number < len(WORDS) else f"{number:,}"


def facts_path(profile):
    """Where the facts of a profile's notebooks lie, which are committed."""
    return reports_path(profile) / "facts.json"


def read_facts(profile):
    """{stage: {name: value}}; {} of a study from before there were any."""
    return read_json(facts_path(profile), {})


def load_findings(name):
    """{place: [Finding, ...]} of findings/NAME.yaml; {} without such a file. ConfigError for what is no such file."""
    path = FILES / "findings" / f"{name}.yaml"
    if not path.exists():
        return {}
    found = validated(dict[str, several(Finding)], read_yaml(path, f"findings/{path.name}") or {}, f"findings/{path.name}")
    for place, of_place in found.items():
        if twice := repeated([one.name for one in of_place]):
            raise ConfigError(f"findings/{path.name}: {place}: two findings are called {twice!r}; give each a name of its own")
    return found


def sentences(profile, place, runs, facts=None, strict=True):
    """The findings of a profile's place as a list of sentences: all of them.

    strict: raise ConfigError, with its name, for one that does not hold; else it is left out, as where somebody changes a parameter
    to see what else may come out.
    """
    names = Seen(runs, facts, place.partition("_")[0]).names()  # an appendix, kr_readings, is of its stage
    found = load_findings(profile).get(place, ())
    return [said for one in found if (said := sentence(one, names, f"findings/{profile}.yaml, {place}", strict))]


def as_published():
    """Whether params.yaml is word for word its profile's: then all findings must hold."""
    path = ROOT / "params.yaml"
    return path.exists() and unedited(path.read_text(encoding="utf-8", errors="replace"))


def sentence(finding, names, place, strict=True):
    """A Finding's sentence with its numbers; "" for one that does not hold where that is no error."""

    def number(match):
        return format(evaluated(match[1], names), match[2] or "")

    try:
        if evaluated(finding.holds, names):
            return EXPRESSION.sub(number, finding.says)
        problem = f"no longer holds: {finding.holds}"
    except Exception as error:  # an expression may fail in any way
        problem = f"cannot be computed ({type(error).__name__}: {' '.join(str(error).split())})"
    if strict:
        raise ConfigError(f"{place}: {finding.name!r} {problem}; see what came out, and write down what is true")
    return ""


def evaluated(expression, names):
    """The value of a Python expression over `names` and nothing else."""
    return eval(expression, {"__builtins__": {}, **names})


def of_studies(place):
    """The findings of findings/README.yaml at a place: sentences over several studies, each called by its profile's name.

    digits.top1("kd_main", "KD") is of the profile digits; dashes in a profile's name become underscores.
    """
    studies = {path.parent.name: Seen(read_results(path), read_facts(path.parent.name)) for path in sorted(reports_path("").glob("*/results.csv"))}
    names = {**BUILT_IN, "words": words, **{profile.replace("-", "_"): seen for profile, seen in studies.items()}}
    return [sentence(one, names, f"findings/README.yaml, {place}") for one in load_findings("README").get(place, ())]


def as_list(found):
    """Sentences as a Markdown list; "" for none."""
    return "".join(f"- {sentence}\n" for sentence in found)


def check_findings():
    """ConfigError for the first finding that the committed results do not bear out, of any study."""
    pages = [path.stem.partition("_")[2] for path in sorted((FILES / "notebooks").glob("*.ipynb"))]
    for path in sorted(reports_path("").glob("*/results.csv")):
        profile, runs = path.parent.name, read_results(path)
        for place in load_findings(profile):
            if place not in pages:
                raise ConfigError(f"findings/{profile}.yaml: no notebook {place!r}{nearest(place, pages)}; there are {', '.join(pages)}")
            sentences(profile, place, runs, read_facts(profile))
    for place in load_findings("README"):
        of_studies(place)
