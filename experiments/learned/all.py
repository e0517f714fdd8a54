"""Makes the searched tables and then runs the experiment: all of experiments/learned by one command.

    python experiments/learned/all.py
    python experiments/learned/all.py --workdir=runs/learned

Searches are in WORKDIR/searches, and the tables that they found are copied to searched_*.json beside this file, where
config.py reads them. Started again, the command goes on where it ended. For other weights take another workdir: a
search that is done is not made again.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from giraffe_jax.config import load
from giraffe_jax.lab.run import run
from giraffe_jax.lab.search import search
from giraffe_jax.records import write_atomically

HERE = Path(__file__).parent
CONFIG = HERE / "config.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where a cell of the experiment failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/learned"), help="where all of it lives; local")
    args = parser.parse_args(argv)
    about = runpy.run_path(str(CONFIG))
    for kind in about["KINDS"]:
        for factor in about["FACTORS"]:
            name = f"{kind}_{factor}"
            print(f"search of {name}", flush=True)
            found = search(load(f"{CONFIG}:{kind},{factor}"), args.workdir / "searches" / name)
            write_atomically(HERE / f"searched_{name}.json", json.dumps([found.entry]) + "\n")
    return 1 if run(load(str(CONFIG)), args.workdir).failures else 0


if __name__ == "__main__":
    sys.exit(main())
