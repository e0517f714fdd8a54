"""Write the report of finished or unfinished experiments: Markdown and CSV tables, PNG and SVG plots, one HTML page.

  giraffe report runs/quickstart
  giraffe report runs/a runs/b --out=runs/compared

Its files go into the first folder unless --out names another.
"""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", metavar="DIR", help="workdirs of `giraffe run` or `giraffe evaluate`")
    parser.add_argument("--out", metavar="DIR", help="where the report goes; by default the first DIR")


def run(args: argparse.Namespace) -> int:
    from giraffe_jax import report

    workdirs = [Path(workdir) for workdir in args.workdirs]
    results = report.read(workdirs)
    page = report.write(workdirs, Path(args.out or workdirs[0]))
    print(report.main_tables(results))
    print(f"report: {page}")
    return 0
