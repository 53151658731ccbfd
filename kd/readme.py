"""README.md's numbers, written from the committed reports between markers: `python -m kd readme`."""

import re
from pathlib import Path

import pandas as pd

from kd import checkpoints
from kd.errors import Problem
from kd.records import controls, markdown_body, summary
from kd.study import ROOT, load_table
from kd.tables import read_results

MARKER = re.compile(r"<!-- (table|answer|bench):(.+?) -->(.*?)<!-- end -->", re.DOTALL)


def filled(text, results):
    """`text` with what stands between its markers written anew from the reports. Unknown names raise Problem.

    <!-- table:NAME --> a table <!-- end -->
    <!-- answer:combined --> sentences <!-- end -->
    <!-- bench:PAIR/VARIANT/COLUMN -->73.6<!-- end -->      of the rows "steps" in reports/benchmark.csv

    NAME@PROFILE is of another profile's reports; results: {profile or "": DataFrame of its results.csv}, "" being the default's.
    """

    def content(match):
        if match[1] == "bench":
            return measured(*match[2].split("/"))
        kind, (name, _, profile) = match[1], match[2].partition("@")
        runs = results[profile]
        if kind == "answer":
            from kd import effects

            if name != "combined":
                raise Problem(f"README.md: {match[0].splitlines()[0]}: only the combined study has an answer; write answer:combined")
            return "\n\n" + "".join(f"- {sentence}\n" for sentence in effects.answer(effects.accuracies(runs))) + "\n"
        table = load_table(name)
        body = markdown_body(summary(runs, table), table, controls(runs, table))
        if profile:  # the figures reported for other pairs stand under the default profile's table
            body = body.partition("\n\n**Reported elsewhere")[0] + "\n"
        return f"\n\n{body}\n"

    if stray := text.count("<!-- end -->") - len(MARKER.findall(text)):
        raise Problem(f"README.md: {abs(stray)} `<!-- end -->` too many or without a marker that is known: table, answer, bench")
    return MARKER.sub(lambda match: f"<!-- {match[1]}:{match[2]} -->{content(match)}<!-- end -->", text)


def measured(pair, variant, column):
    """A number of the benchmark's training steps, with three digits."""
    rows = pd.read_csv(ROOT / "reports" / "benchmark.csv")
    rows = rows[(rows["what"] == "steps") & (rows["pair"] == pair) & (rows["variant"] == variant)]
    if len(rows) != 1 or column not in rows:
        raise Problem(f"README.md: reports/benchmark.csv has no {column} of {variant} for {pair}")
    return f"{rows.iloc[0][column]:.3g}"


def write_readme(check=False, readme=None, results=None):
    """Fill README.md's markers from the committed reports, those of digits (`results`) where a marker names no profile; with `check`, raise Problem where they differ."""
    readme, results = Path(readme or ROOT / "README.md"), Path(results or ROOT / "reports" / "digits" / "results.csv")
    if not readme.exists():
        raise Problem(f"{readme} is missing")
    text = readme.read_text()
    profiles = {match[2].partition("@")[2] for match in MARKER.finditer(text)} - {""}
    others = {profile: read_results(ROOT / "reports" / profile / "results.csv") for profile in profiles}
    new = filled(text, {"": read_results(results), **others})
    if check and new != text:
        pairs = zip(MARKER.finditer(text), MARKER.finditer(new), strict=True)
        drifted = [f"{old[1]}:{old[2]}" for old, now in pairs if old[3] != now[3]]
        raise Problem(f"README.md differs from {results.name} at {', '.join(drifted)}; run `python -m kd readme`")
    if not check and new != text:
        checkpoints.write_atomically(readme, new)
