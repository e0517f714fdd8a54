"""Write the report of finished or unfinished experiments: Markdown, LaTeX and CSV tables, PNG and SVG plots, a page.

  giraffe report runs/quickstart
  giraffe report runs/a runs/b --out=runs/compared

Of several folders the first is also compared with each other one, on the page, in the tables and in compared.csv:
variants of the same name, on the windows and questions that both have measured, at every such length. What is the same
in both is shown once. The files go into the first folder unless --out names another.
"""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="DIR",
        help="workdirs of `giraffe run` or `giraffe evaluate`; several are compared with the first",
    )
    parser.add_argument("--out", metavar="DIR", help="where the report goes; by default the first DIR")


def run(args: argparse.Namespace) -> int:
    from giraffe_jax import report

    workdirs = [Path(workdir) for workdir in args.workdirs]
    results = report.read(workdirs)
    page = report.write(workdirs, Path(args.out or workdirs[0]))
    print(report.main_tables(results))
    print(f"report: {page}")
    return 0
