"""The numbers of README.md and of docs/, written from the committed reports between markers: `python -m kd readme`."""

import re
from functools import cache
from pathlib import Path

import pandas as pd

from kd.checkpoints import write_atomically
from kd.errors import ConfigError
from kd.report.claims import decided, judge, load_claims
from kd.report.claims_page import overview, studies, studies_in_words
from kd.report.conclusions import conclusions
from kd.report.effects import accuracies
from kd.report.findings import as_list, of_studies
from kd.report.markdown import markdown_body
from kd.report.summary import controls, summary
from kd.report.tables import read_results
from kd.study.paths import ROOT, reports_path
from kd.study.tables import load_table

KINDS = ("table", "claims", "findings", "conclusions", "bench")
MARKER = re.compile(rf"<!-- ({'|'.join(KINDS)}):(.+?) -->(.*?)<!-- end -->", re.DOTALL)


def filled(text, results, place="README.md"):
    """`text` with what stands between its markers written anew from the reports. Unknown names raise ConfigError.

    <!-- table:NAME --> a table <!-- end -->
    <!-- claims:words --> a line a study: which claims hold <!-- end -->
    <!-- claims:all --> every claim and what each study says of it <!-- end -->
    <!-- findings:PLACE --> sentences of findings/README.yaml <!-- end -->
    <!-- conclusions:combined --> sentences <!-- end -->
    <!-- bench:PAIR/VARIANT/COLUMN -->73.6<!-- end -->      of the rows "steps" in reports/benchmark.csv

    NAME@PROFILE is of another profile's reports. results: {profile: DataFrame of its results.csv}, "" the default's. place: the page, for messages.
    """

    judged = cache(studies)

    def content(kind, what):
        if kind == "bench":
            return measured(place, *what.split("/"))
        if kind == "findings":
            return f"\n\n{as_list(of_studies(what))}\n"
        if what == "words" and kind == "claims":
            return f"\n\n{studies_in_words(judged())}\n\n"
        if kind == "claims":
            return f"\n\n{overview(load_claims(), judged(), 'reports/claims.md')}\n\n"
        name, _, profile = what.partition("@")
        runs = results[profile]
        if kind == "conclusions":
            if name != "combined":
                raise ConfigError(
                    f"{place}: {kind}:{what}: only the combined study has conclusions; write conclusions:combined"
                )
            return "\n\n" + "".join(f"- {sentence}\n" for sentence in conclusions(accuracies(runs), judged=judge(runs))) + "\n"
        table = load_table(name)
        body = decided(markdown_body(summary(runs, table), table, controls(runs, table)), judge(runs))
        if profile:  # the figures reported for other pairs stand under the default profile's table
            body = body.partition("\n\n**Reported elsewhere")[0] + "\n"
        return f"\n\n{body}\n"

    if stray := text.count("<!-- end -->") - len(MARKER.findall(text)):
        raise ConfigError(
            f"{place}: {abs(stray)} `<!-- end -->` too many or without a marker that is known: {', '.join(KINDS)}"
        )
    return MARKER.sub(lambda match: f"<!-- {match[1]}:{match[2]} -->{content(match[1], match[2])}<!-- end -->", text)


def measured(place, pair, variant, column):
    """A number of the benchmark's training steps, with three digits."""
    rows = pd.read_csv(ROOT / "reports" / "benchmark.csv")
    rows = rows[(rows["what"] == "steps") & (rows["pair"] == pair) & (rows["variant"] == variant)]
    if len(rows) != 1 or column not in rows:
        raise ConfigError(f"{place}: reports/benchmark.csv has no {column} of {variant} for {pair}")
    return f"{rows.iloc[0][column]:.3g}"


def write_readme(check=False, readme=None, results=None):
    """Fill the markers of README.md and of docs/ from the committed reports; with `check` only raise ConfigError where they differ.

    readme: one page in place of these. results: the results.csv of markers that name no profile; default reports/digits/results.csv.
    """
    results = Path(results or reports_path("digits") / "results.csv")
    for page in [Path(readme)] if readme else [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if not page.exists():
            raise ConfigError(f"{page} is missing")
        text = page.read_text()
        profiles = {match[2].partition("@")[2] for match in MARKER.finditer(text)} - {""}
        others = {profile: read_results(reports_path(profile) / "results.csv") for profile in profiles}
        new = filled(text, {"": read_results(results), **others}, page.name)
        if check and new != text:
            pairs = zip(MARKER.finditer(text), MARKER.finditer(new), strict=True)
            drifted = [f"{old[1]}:{old[2]}" for old, now in pairs if old[3] != now[3]]
            raise ConfigError(f"{page.name} differs from {results.name} at {', '.join(drifted)}; run `python -m kd readme`")
        if not check and new != text:
            write_atomically(page, new)
