"""Builds build/site from the committed reports: lays out build/site-source, then Sphinx makes the pages.

Whatever is in reports/ becomes a page; the front page is computed from claims.csv, benchmark.csv and README.md. No
notebook is executed. `make site` runs this; KD's own package is read for the API pages alone.
"""

import csv
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

from jinja2 import Template
from sphinx.cmd.build import main as sphinx

import kd
from kd.report.claims import load_claims
from kd.report.claims_page import MARKS, overview, studies

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
SOURCE, SITE = ROOT / "build" / "site-source", ROOT / "build" / "site"
REPOSITORY = os.environ.get("GITHUB_REPOSITORY")  # owner/name, known where GitHub builds the site
EQUATIONS = {
    "KD": r"(1-\alpha)\,\mathrm{CE}(z_s, y) + \alpha\,T^2\,\mathrm{KL}\big(p_t^{(T)} \,\|\, p_s^{(T)}\big)",
    "KR": r"T^2 \sum_{\text{groups}} \Big\langle -\sum_{c\,\in\,\text{kept}} q_c \log p_c \Big\rangle_{\text{images}}",
    "SRM": r"\begin{gathered} \hat s = \text{the } k \text{ largest of } \sigma(C^\top x + b) \\"
    r" \hat x = C\,\hat s \end{gathered}",
    "RCO": r"H_S + \lambda\,\mathrm{KL}(P_{\text{anchor}} \,\|\, P_{\text{student}})",
    "IE-KD": r"\begin{aligned} L_{\text{task}} &+ \lambda_{\text{inh}}\, d\big(E_I(f_I), E_T(f_T)\big) \\"
    r" &- \lambda_{\text{exp}}\, d\big(E_E(f_E), E_T(f_T)\big) \end{aligned}",
    "PWKD": r"\begin{gathered} f_{w_1} \to f_{w_2} \to \dots \to f_{w_n} \\"
    r" w_1 < w_2 < \dots < w_n = 1 \end{gathered}",
}


# ---- what the reports say, in words


def read_csv(name):
    with open(REPORTS / name, newline="") as file:
        return list(csv.DictReader(file))


def joined(parts):
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def plural(number, word):
    return f"{number} {word}" + ("" if number == 1 else "s")


def effect(line):
    return f"{float(line['mean']):+.2f} ± {float(line['half_width']):.2f}".replace(" ", "\N{NO-BREAK SPACE}")


def by_verdict(lines):
    """A point a verdict: "supported: on a KR over KD (+4.15 ± 0.45); on b ..", of lines of claims.csv."""
    said = []
    for verdict in MARKS:
        found = [line for line in lines if line["verdict"] == verdict]
        places = []
        for study in dict.fromkeys(line["study"] for line in found):
            here = [f"{line['claim']} ({effect(line)})" for line in found if line["study"] == study]
            places.append(f"on {study} {joined(here)}")
        if places:
            said.append(f"- **{verdict}**: {'; '.join(places)}")
    return "\n".join(said)


def counts(lines):
    """Lines of claims.csv as "2 supported, 1 contradicted, 4 cannot tell"."""
    number = Counter(line["verdict"] for line in lines)
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in MARKS)


def answer(lines):
    """The front page's answer: how many claims hold, whether distillation helps, whether a paper's method beats it."""
    claims, studies = {line["claim"] for line in lines}, dict.fromkeys(line["study"] for line in lines)
    plain = [line for line in lines if line["claim"] == "KD over labels"]
    better = [line for line in lines if line["claim"].endswith(" over KD") or line["claim"] == "IE-FT over FT"]
    held = sum(line["verdict"] == "supported" for line in better)
    return f"""\
The studies here, {joined(studies)}, test {plural(len(claims), "claim")}, each where its rows were run:
{plural(len(lines), "test")} in all, **{counts(lines)}**.

Is a student that learns from a teacher better than one that learns from the labels alone?

{by_verdict(plain)}

Is a paper's method better than plain distillation (IE-KD: than FT, its plain form)? Shown in {held} of
{plural(len(better), "test")}.

{by_verdict(better)}"""


def methods(lines, readme, profiles):
    """A card's contents for every method of README's table that has an equation."""
    found = []
    for name, who, _, text, file, number in re.findall(
        r"^\| (\S+) \((.+?)\) \| (.+?) \| (.+?) \| \[(.+?)\.py\]\(.+?\) \| \[(\d\d)\]", readme, re.MULTILINE
    ):
        if name in EQUATIONS:
            paths = {profile: path for profile in profiles for path in notebooks(profile, number)}
            links = [f"[{profile}](reports/{path})" for profile, path in paths.items()]
            found.append(
                {
                    "name": f"{name} ({who})",
                    "line": f"{text[0].upper()}{text[1:]}.",
                    "equation": EQUATIONS[name],
                    "verdicts": counts([line for line in lines if line["paper"] == name]),
                    "cost": cost(file),
                    "links": f"Notebook {number}: {', '.join(links)}",
                }
            )
    if len(found) < len(EQUATIONS):
        raise ValueError(f"README.md's table of methods has lines for {len(found)} of {', '.join(EQUATIONS)}")
    return found


def cost(method):
    """A method's step in steps of KD, as the benchmark measured it."""
    steps = [line for line in read_csv("benchmark.csv") if line["what"] == "methods" and line["method"] == method]
    if not steps:
        return "a step costs what the knowledge that it carries costs; not measured by itself."
    if method == "kd":
        return f"{float(steps[0]['ms']):.0f} ms a step in the [benchmark](reports/benchmark.md); the others' measure."
    times = [f"{float(line['relative']):.2f}" for line in steps]
    said = [f"{time} ({line['phase']})" for time, line in zip(times, steps, strict=True)] if len(steps) > 1 else times
    return f"a step takes {joined(said)} times as long as one of KD."


# ---- the pages


def notebooks(profile, number):
    """The paths of a profile's notebooks of that number, from reports/."""
    found = sorted((REPORTS / profile / "notebooks").glob(f"{number}_*.ipynb"))
    return [path.relative_to(REPORTS).as_posix() for path in found]


def settled(text, folder):
    """Markdown whose links lead to other pages, or to the repository where a file is no page."""

    def link(match):
        name, target = match.groups()
        path = (folder / target.partition("#")[0]).resolve()
        if ":" in target or path.is_relative_to(REPORTS):
            return match[0]
        address = f"https://github.com/{REPOSITORY}/tree/main/{os.path.relpath(path, ROOT)}"
        return f"[{name}]({address})" if REPOSITORY else name

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#\s][^)\s]*)\)", link, text)


def write(name, content):
    """A file of build/site-source; one that would not change is left alone, so that Sphinx need not read it again."""
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, bytes) else content.encode()
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    return path


def lay_out():
    """Write everything that Sphinx reads; returns the paths."""
    readme, lines = (ROOT / "README.md").read_text(), read_csv("claims.csv")
    profiles = sorted((path.parent.name for path in REPORTS.glob("*/results.csv")), key=lambda p: (p != "digits", p))
    pairs = {profile: {line["pair"] for line in lines if line["profile"] == profile} for profile in profiles}
    for line in lines:
        several = len(pairs[line["profile"]]) > 1
        line["study"] = f"{line['profile']}, {line['pair']}" if several else line["profile"]
    pages = [write("index.md", front(readme, lines, profiles))]
    pages += [write("how-to-read.ipynb", how_to_read(profiles[0]))]
    for profile in profiles:
        pages += study(profile)
    for path in [*REPORTS.glob("claims.*"), *REPORTS.glob("benchmark.*")]:
        pages.append(write(f"reports/{path.name}", copy_of(path)))
    return pages + api()


def copy_of(path):
    """A report as the site has it: Markdown with its links settled, notebooks without the line for their editors."""
    if path.suffix == ".md":
        return settled(path.read_text(), path.parent)
    if path.suffix == ".ipynb":
        book = json.loads(path.read_text())
        book["cells"] = [cell for cell in book["cells"] if not "".join(cell["source"]).startswith("*generated from ")]
        return json.dumps(book, indent=1, ensure_ascii=False)
    return path.read_bytes()


def study(profile):
    """A profile's pages: what it is, its notebooks, its tables with their figures."""
    folder = REPORTS / profile
    files = [*sorted(folder.glob("notebooks/*.ipynb")), folder / "tables.md", folder / "results.csv"]
    pages = [
        write(f"reports/{path.relative_to(REPORTS)}", copy_of(path)) for path in [*files, *folder.glob("figures/*")]
    ]
    about = (folder / "tables.md").read_text().partition("\n")[2].partition("\nGenerated from")[0].strip()
    contents = "\n".join(["tables", *(f"notebooks/{path.stem}" for path in files if path.suffix == ".ipynb")])
    more = "All tables on one page: [tables](tables.md). Every run is a line of [results.csv](results.csv)."
    text = f"# Study: {profile}\n\n{about}\n\n{more}\n\n```{{toctree}}\n:maxdepth: 1\n\n{contents}\n```\n"
    return [*pages, write(f"reports/{profile}/index.md", text)]


def how_to_read(profile):
    """Notebook 08 of a profile from its first section to the tables, which it explains before it shows them."""
    book, cells = json.loads(copy_of(REPORTS / notebooks(profile, "08")[0])), []
    for cell in book["cells"]:
        text, *tables = re.split("^## The tables$", "".join(cell["source"]), maxsplit=1, flags=re.MULTILINE)
        if cells or text.startswith("## "):
            cells.append({**cell, "source": text})
        if tables:
            break
    title = {"cell_type": "markdown", "metadata": {}, "id": "title", "source": "# How to read a table"}
    book["cells"] = [title, *cells]
    return json.dumps(book, indent=1, ensure_ascii=False)


def api():
    """A page for every module with public names, and one that lists them."""
    pages, rows, modules = [], ["| module | names |", "|---|---|"], []
    for place, names in kd.WHERE.items():
        # a public name that is a module itself is shown whole
        module, members = (f"{place}.figures", "") if names == ("figures",) else (place, ", ".join(names))
        text = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members: {members}\n```\n"
        pages.append(write(f"api/{module}.md", text))
        rows.append(f"| [{module}]({module}.md) | {', '.join(f'`{name}`' for name in names)} |")
        modules.append(module)
    head = "# API\n\nEvery name here is found in `kd` itself: `kd.distill`, `kd.KD`.\n\n" + "\n".join(rows)
    contents = "\n".join(modules)
    return [*pages, write("api/index.md", f"{head}\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n")]


def front(readme, lines, profiles):
    title, lead, after = re.match(r"# (.+?)\n\n(.+?)\n\n(?:.*?)## (.*)", readme, re.DOTALL).groups()
    commands_title, _, section = after.partition("\n")
    commands, needs = re.search(r"```sh\n(.+?)\n```\n\n(.+?)\n\n", section, re.DOTALL).groups()
    contents = ["How to read a table <how-to-read>", *(f"{profile} <reports/{profile}/index>" for profile in profiles)]
    contents += ["Claims <reports/claims>", "Benchmark <reports/benchmark>", "API <api/index>"]
    return Template((ROOT / "site" / "index.md").read_text()).render(
        title=title, lead=lead, answer=answer(lines), methods=methods(lines, readme, profiles),
        claims=overview(load_claims(), studies(), "reports/claims.md"), commands_title=commands_title, commands=commands, needs=needs,
        contents="\n".join(contents),
    )  # fmt: skip


def main():
    pages = set(lay_out())
    stale = {path for path in SOURCE.rglob("*") if path.is_file()} - pages
    for path in stale:
        path.unlink()
    if stale and SITE.exists():  # Sphinx leaves pages whose source is gone
        shutil.rmtree(SITE)
    options = ["-q", "-c", ROOT / "site", "-d", ROOT / "build" / "site-doctrees"]
    return sphinx([*map(str, options), str(SOURCE), str(SITE)])


if __name__ == "__main__":
    sys.exit(main())
