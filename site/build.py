"""Builds build/site from the committed reports: lays out build/site-source, then Sphinx makes the pages.

Whatever is in reports/ and docs/ becomes a page; the front page is computed from findings/README.yaml, claims.csv, benchmark.csv and
README.md. No notebook is executed. `make site` runs this; KD's own package is read for drawings and the API pages alone.
"""

import csv
import json
import os
import re
import shutil
import sys
from collections import Counter
from inspect import ismodule
from pathlib import Path

from jinja2 import Template
from sphinx.cmd.build import main as sphinx

import kd
from kd.report.claims import load_claims
from kd.report.claims_page import MARKS, overview, studies
from kd.report.findings import as_list, of_studies

ROOT = Path(__file__).resolve().parent.parent
REPORTS, DOCS = ROOT / "reports", ROOT / "docs"
SOURCE, SITE, DOCTREES = (ROOT / "build" / name for name in ("site-source", "site", "site-doctrees"))
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
    "all of them": r"\text{curriculum} \times (\text{knowledge} + \text{knowledge})",
}


# ---- what the reports say, in words


def read_csv(name):
    with open(REPORTS / name, newline="") as file:
        return list(csv.DictReader(file))


def joined(parts):
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def counts(lines):
    """Lines of claims.csv as "2 supported, 1 contradicted, 4 cannot tell"."""
    number = Counter(line["verdict"] for line in lines)
    return ", ".join(f"{number[verdict]} {verdict}" for verdict in MARKS)


def methods(lines, readme, profiles):
    """A card's contents for every method of README's table that has an equation."""
    found, pair = [], digits_pair()
    for name, who, text, file, number in re.findall(
        r"^\| (\S+|all of them)(?: \((.+?)\))? \| .+? \| (.+?) \| (?:\[(.+?)\.py\]\(.+?\))? ?\| \[(\d\d)\]", readme, re.MULTILINE
    ):
        if name in EQUATIONS:
            stage = file or "combined"
            found.append(
                {
                    "name": f"{name} ({who})" if who else f"{name[0].upper()}{name[1:]}",
                    "schematic": f"schematics/{stage}.svg",
                    "drawing": getattr(kd.schematics, stage)(*pair).data,
                    "line": f"{text[0].upper()}{text[1:]}.",
                    "equation": EQUATIONS[name],
                    "verdicts": counts([line for line in lines if line["paper"] in (name, stage)]),
                    "cost": cost(stage) if file else "that of its parts together.",
                    "links": links(profiles, number),
                }
            )
    if len(found) < len(EQUATIONS):
        raise ValueError(f"README.md's table of methods has lines for {len(found)} of {', '.join(EQUATIONS)}")
    return found


def digits_pair():
    """The networks with which the methods are drawn, (teacher, student): those of the study on digits."""
    return read_csv("digits/results.csv")[0]["pair"].split(" -> ")


def links(profiles, number):
    """Where a method's notebooks are, its appendices too: "Notebook 02: digits, ..; 02a: digits"."""
    found = {}
    for profile in profiles:
        for path in notebooks(profile, f"{number}*"):
            found.setdefault(Path(path).stem.partition("_")[0], []).append(f"[{profile}](reports/{path})")
    return "Notebook " + "; ".join(f"{name}: {', '.join(places)}" for name, places in sorted(found.items()))


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


def notebooks(profile, pattern):
    """The paths of a profile's notebooks of such a name, from reports/."""
    found = sorted((REPORTS / profile / "notebooks").glob(f"{pattern}.ipynb"))
    return [path.relative_to(REPORTS).as_posix() for path in found]


def how_to_read(profile):
    """The path of the notebook that explains a profile's tables, from reports/."""
    return notebooks(profile, "*_tables")[0]


def settled(text, folder):
    """Markdown of a file in `folder` whose links lead to pages; to the repository, or nowhere, where a file is no page."""

    def link(match):
        name, target = match.groups()
        path, anchor = Path(os.path.normpath(folder / target.partition("#")[0])), target.partition("#")[2]
        if ":" in target or (path.is_relative_to(REPORTS) and path.is_file()):
            return match[0]
        if page := page_of(path):
            return f"[{name}]({os.path.relpath(ROOT / page, folder)}{'#' if anchor else ''}{anchor})"
        address = f"https://github.com/{REPOSITORY}/tree/main/{os.path.relpath(path, ROOT)}"
        return f"[{name}]({address})" if REPOSITORY and path.exists() else name

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#\s][^)\s]*)\)", link, text)


def page_of(path):
    """The page, from the site's root, of a file of the repository that lies elsewhere or is no page itself; None without one."""
    name = os.path.relpath(path, ROOT)
    module = name.removesuffix(".py").replace("/", ".")
    if name == "README.md":
        return "index.md"
    if path.parent == DOCS and path.is_file():
        return name
    if path.is_relative_to(REPORTS) and (path / "tables.md").is_file():
        return f"{name}/index.md"
    return None if REPOSITORY or module not in kd.WHERE else f"api/{module}.md"


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
    cards = methods(lines, readme, profiles)
    pages = [write("index.md", front(readme, lines, profiles, cards))]
    pages += [write(card["schematic"], card["drawing"]) for card in cards]
    pages.append(write("reports/index.md", all_studies(profiles)))
    for profile in profiles:
        pages += study(profile)
    for path in [*REPORTS.glob("claims.*"), *REPORTS.glob("benchmark.*"), REPORTS / "answer.svg"]:
        pages.append(write(f"reports/{path.name}", copy_of(path)))
    return pages + guide(readme) + api()


def copy_of(path):
    """A report as the site has it: links of its Markdown settled, notebooks without the line for their editors."""
    if path.suffix == ".md":
        return settled(path.read_text(), path.parent)
    if path.suffix == ".ipynb":
        book = json.loads(path.read_text())
        book["cells"] = [cell for cell in book["cells"] if not "".join(cell["source"]).startswith("*generated from ")]
        for cell in book["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = settled("".join(cell["source"]), path.parent)
        return json.dumps(book, indent=1, ensure_ascii=False)
    return path.read_bytes()


def all_studies(profiles):
    contents = "\n".join(f"{profile} <{profile}/index>" for profile in profiles)
    return f"# Studies\n\n```{{toctree}}\n:maxdepth: 2\n:titlesonly:\n\n{contents}\n```\n"


def study(profile):
    """A profile's pages: what it is, its notebooks, its tables with their figures."""
    folder = REPORTS / profile
    pages = [*sorted(folder.glob("notebooks/*.ipynb")), folder / "tables.md", *folder.glob("searches/README.md")]
    files = [*pages, folder / "results.csv", *folder.glob("figures/*"), *folder.glob("searches/*.csv")]
    about = (folder / "tables.md").read_text().partition("\n")[2].partition("\nGenerated from")[0].strip()
    contents = "\n".join(path.relative_to(folder).with_suffix("").as_posix() for path in pages)
    more = f"New here? [How to read a table]({os.path.relpath(REPORTS / how_to_read(profile), folder)}). "
    more += "All tables on one page: [tables](tables.md). Every run is a line of [results.csv](results.csv)."
    text = f"# Study: {profile}\n\n{about}\n\n{more}\n\n## Pages\n\n```{{toctree}}\n:maxdepth: 1\n\n{contents}\n```\n"
    written = [write(f"reports/{path.relative_to(REPORTS)}", copy_of(path)) for path in files]
    return [*written, write(f"reports/{profile}/index.md", text)]


def guide(readme):
    """docs/ as pages, and one that lists them as README.md does."""
    named = re.findall(r"^\| \[(.+?)\]\(docs/(\w+)\.md\) \| (.+?) \|$", readme, re.MULTILINE)
    missing = {path.stem for path in DOCS.glob("*.md")} - {name for _, name, _ in named}
    if missing:
        raise ValueError(f"README.md's table of pages lacks {', '.join(sorted(missing))}")
    pages = [write(f"docs/{name}.md", settled((DOCS / f"{name}.md").read_text(), DOCS)) for _, name, _ in named]
    rows = "\n".join(f"| [{title}]({name}.md) | {about} |" for title, name, about in named)
    contents = "\n".join(name for _, name, _ in named)
    text = f"# Guide\n\n| page | what it is about |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"
    return [*pages, write("docs/index.md", text)]


def api():
    """A page for every module with public names, and one that lists them."""
    pages, rows, modules = [], ["| module | names |", "|---|---|"], []
    for place, names in kd.WHERE.items():
        # a public name that is a module itself is shown whole
        whole = [name for name in names if ismodule(getattr(kd, name))]
        for module, members in [(f"{place}.{name}", "") for name in whole] or [(place, ", ".join(names))]:
            text = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members: {members}\n```\n"
            pages.append(write(f"api/{module}.md", text))
            shown = [module.rpartition(".")[2]] if whole else names
            rows.append(f"| [{module}]({module}.md) | {', '.join(f'`{name}`' for name in shown)} |")
            modules.append(module)
    head = "# API\n\nEvery name here is found in `kd` itself: `kd.distill`, `kd.KD`.\n\n" + "\n".join(rows)
    contents = "\n".join(modules)
    return [*pages, write("api/index.md", f"{head}\n\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n")]


def front(readme, lines, profiles, cards):
    title, lead = re.match(r"# (.+?)\n\n(.+?)\n\n", readme, re.DOTALL).groups()
    commands, needs = re.search(r"```sh\n(.+?)\n```\n\n(.+?)\n\n", readme, re.DOTALL).groups()
    claims = load_claims()
    first = how_to_read(profiles[0]).removesuffix(".ipynb")
    contents = [
        "Studies <reports/index>",
        f"How to read a table <reports/{first}>",  # within the first study too, where previous and next lead through it
        "Claims <reports/claims>",
        "Guide <docs/index>",
        "Benchmark <reports/benchmark>",
        "API <api/index>",
    ]
    answer = as_list(of_studies("readme")).replace(" ± ", "\u00a0±\u00a0")
    return Template((ROOT / "site" / "index.md").read_text()).render(
        title=title, lead=lead, answer=answer, methods=cards, commands=commands, needs=needs,
        claims=overview(claims, studies(), "reports/claims.md"), count=len(claims), tests=len(lines), counts=counts(lines),
        how_to_read=f"reports/{how_to_read(profiles[0])}", first=f"reports/{notebooks(profiles[0], '00_*')[0]}",
        contents="\n".join(contents),
    )  # fmt: skip


def main():
    before = {path for path in SOURCE.rglob("*") if path.is_file()}
    pages = set(lay_out())
    for path in before - pages:
        path.unlink()
    if before != pages:  # Sphinx leaves pages whose source is gone, and links to a page that is new
        for folder in (SITE, DOCTREES):
            shutil.rmtree(folder, ignore_errors=True)
    return sphinx(["-q", "-c", str(ROOT / "site"), "-d", str(DOCTREES), str(SOURCE), str(SITE)])


if __name__ == "__main__":
    sys.exit(main())
