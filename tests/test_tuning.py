"""What `giraffe` sets of its own process, and what it leaves alone."""

import os

import pytest

from giraffe_jax import tuning


@pytest.mark.parametrize(
    ("flags", "env", "want"),
    [
        ("fpu avx2 avx512f", {}, "--xla_cpu_prefer_vector_width=512"),
        ("fpu avx2", {}, ""),
        ("avx512f", {"GIRAFFE_TUNING": "off"}, ""),
        ("avx512f", {"XLA_FLAGS": "--a=1"}, "--a=1 --xla_cpu_prefer_vector_width=512"),
        ("avx512f", {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=256"}, "--xla_cpu_prefer_vector_width=256"),
    ],
)
def test_vectors_are_as_wide_as_the_processor_has_them_unless_told_otherwise(monkeypatch, flags, env, want):
    for name in ("XLA_FLAGS", "GIRAFFE_TUNING"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tuning, "_cpu_flags", lambda: frozenset(flags.split()))
    tuning.tune()
    assert os.environ.get("XLA_FLAGS", "") == want
