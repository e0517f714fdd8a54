"""Write the report of finished or unfinished experiments: Markdown, LaTeX and CSV tables, PNG and SVG plots, HTML page.

  giraffe report runs/quickstart
  giraffe report runs/a runs/b --out=runs/compared

With several folders, the first is also compared with each of the others, on the page, in the tables and in
compared.csv: variants of the same name, on the windows and questions measured in both, at every such length. Identical
results are shown once. The files go into the first folder unless --out names another.
"""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `giraffe report`."""
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        help="workdirs of `giraffe run` or `giraffe evaluate`; several are compared with the first",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write the report (default: the first DIR)")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its main tables; returns 0."""
    from giraffe_jax import report

    workdirs = [Path(workdir) for workdir in args.workdirs]
    results = report.read(workdirs)
    page = report.write(workdirs, Path(args.out or workdirs[0]))
    print(report.main_tables(results))
    print(f"report: {page}")
    return 0
