"""The documentation's site: `pip install -e '.[docs]' && sphinx-build -W -b html docs docs/_build`.

Pages are Markdown (MyST). What is generated: the command line from the parsers, the API from docstrings; config.md and
methods.md are written by `giraffe keys --page` and `giraffe methods --page`, so that they can be read without the site.
"""

import contextlib
import io
import os
import re
from pathlib import Path

import giraffe_jax
from giraffe_jax import cli

os.environ["COLUMNS"] = "100"  # of --help
ROOT = Path(__file__).parents[1]
EXPERIMENTS = (
    "quickstart", "leaderboard", "giraffe", "learned", "mini", "smollm2_16k", "smollm2_64k", "evaluation", "plan",
)  # fmt: skip
# Pages whose text is a file of the repository that is not in docs/, and the other way round.
ELSEWHERE = {
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "log": "LOG.md",
    **{f"results/{name}": f"experiments/{name}/README.md" for name in EXPERIMENTS},
}
PAGES = {file: f"{page}.md" for page, file in ELSEWHERE.items()}

project = "giraffe-jax"
author = "the giraffe-jax authors"
copyright = f"2026, {author}"
version = release = giraffe_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "report"]
html_theme = "furo"
html_title = f"giraffe-jax {version}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_theme_options = {"top_of_page_buttons": []}
html_show_sourcelink = html_show_sphinx = False
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
suppress_warnings = ["myst.header"]  # pages of experiments put generated sections under their title
default_role = "code"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring = True, False
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    app.connect("source-read", complete)


def complete(app, docname, source):
    """Puts the repository's own files and the help of every verb where pages ask for them, and mends links."""
    place = ROOT / "docs" / docname
    if docname in ELSEWHERE:
        place = ROOT / ELSEWHERE[docname]
        source[0] = place.read_text(encoding="utf-8")
    if docname == "cli":
        source[0] = source[0].replace("<!-- help of every verb -->", "\n\n".join(map(help_of, cli.VERBS)))
    source[0] = re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", lambda match: link(match, place.parent), source[0])


def link(match: re.Match, folder: Path) -> str:
    """Returns a Markdown link as the site has it: to a page where there is one, else its text."""
    image, text, target = match.groups()
    name, _, anchor = target.partition("#")
    if not name or re.match(r"\w+:", name):
        return match[0]
    path = Path(os.path.normpath(folder / name))
    path = path / "README.md" if (path / "README.md").is_file() else path
    page = PAGES.get(path.relative_to(ROOT).as_posix()) if path.is_relative_to(ROOT) else None
    if page is None and path.is_relative_to(ROOT / "docs"):
        page = path.relative_to(ROOT / "docs").as_posix()
    if page is None:
        return text
    return f"{image}[{text}](/{page}{'#' + anchor if anchor else ''})"


def help_of(verb: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        cli.main([verb, "--help"])
    return f"## giraffe {verb}\n\n```text\n{text.getvalue().rstrip()}\n```"
