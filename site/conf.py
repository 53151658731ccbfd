"""How Sphinx builds the site from build/site-source, which site/build.py lays out; nothing is executed or fetched."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
REPOSITORY = os.environ.get("GITHUB_REPOSITORY")  # owner/name, known where GitHub builds the site

project = "kd"
author = "The authors of the kd companion"
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
suppress_warnings = ["myst.xref_missing"]  # tables have ids of plain HTML; tests/test_site.py follows every link

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "attrs_block"]
myst_dmath_double_inline = True  # $$..$$ within a paragraph, as Jupyter has it
myst_heading_anchors = 4

mathjax_path = MATHJAX.name
html_static_path = [str(HERE / "static"), str(MATHJAX)]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]

html_theme = "pydata_sphinx_theme"
html_title = "kd"
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}  # dark or light as the reader's system, until a choice is made
html_favicon = str(HERE / "static" / "icon.svg")
html_sidebars = {name: [] for name in ("index", "reports/claims", "reports/benchmark")}
html_theme_options = {
    "navigation_with_keys": True,
    "show_toc_level": 2,
    "show_nav_level": 1,
    "footer_start": ["copyright"],
    "footer_end": [],
    "github_url": f"https://github.com/{REPOSITORY}" if REPOSITORY else "",
}
copyright = f"{author}; MIT licence"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
default_role = "code"
highlight_language = "text"


def as_restructured_text(app, what, name, obj, options, lines):
    """Docstrings are plain text: paragraphs stay paragraphs, whatever is indented or a list stays as it was written."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip())
    lines[:] = "\n\n".join(map(paragraph_or_listing, blocks)).splitlines() + [""]


def paragraph_or_listing(block):
    written = block.splitlines()
    if any(line.startswith((" ", "* ", "- ")) for line in written):
        return "::\n\n" + "\n".join(f"    {line}" for line in written)
    outside_code = re.split(r"(`[^`]*`)", block)
    return "".join(part if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part) for part in outside_code)


def setup(app):
    app.connect("autodoc-process-docstring", as_restructured_text)
