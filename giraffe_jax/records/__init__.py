"""Records: rows of JSON, atomic writes, locks, progress lines and training logs."""

from giraffe_jax.records.files import locked, write_atomically
from giraffe_jax.records.progress import Progress, duration
from giraffe_jax.records.rows import MAX_LINE, MAX_NAMED, Rows, digest, encode, plain, read_rows, slug
from giraffe_jax.records.trainlog import TrainLog

__all__ = [
    "MAX_LINE",
    "MAX_NAMED",
    "Progress",
    "Rows",
    "TrainLog",
    "digest",
    "duration",
    "encode",
    "locked",
    "plain",
    "read_rows",
    "slug",
    "write_atomically",
]
