"""`fabricate` is found by the tests beside it; one whole report is drawn for all of them."""

import os
import sys
from pathlib import Path

import pytest

from giraffe_jax import records, report

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A work directory with all that a report shows, and its report: drawn by the first worker that needs it."""
    import fabricate

    where = tmp_path_factory.getbasetemp()
    where = where.parent if "PYTEST_XDIST_WORKER" in os.environ else where
    with records.locked(where / "fabricated.lock"):
        if not (where / "fabricated" / "report.html").is_file():
            report.write([fabricate.write(where / "fabricated", whole=True)])
    return where / "fabricated"
