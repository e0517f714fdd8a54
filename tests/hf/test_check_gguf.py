"""`giraffe check gguf`: an export passes, and a reader that ignores its frequencies does not."""

import dataclasses

import pytest

from giraffe_jax import cli, hf
from giraffe_jax.cli import llama_cpp

pytestmark = pytest.mark.oracle
needs_llama_cpp = pytest.mark.skipif(not llama_cpp.installed(), reason="llama.cpp: pip install xllamacpp")


@pytest.fixture
def file(tmp_path):
    lm = hf.load("giraffe-mini")
    config = dataclasses.replace(lm.config, positions=(dict(name="yarn", factor=4.0),))
    return hf.save_gguf(lm.params, config, None, tmp_path / "mini.gguf")


@needs_llama_cpp
def test_an_export_passes_at_half_and_all_of_its_length(file, capsys):
    assert cli.main(["check", "gguf", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["512", "1024"]
    assert lines[-1].startswith("passed: perplexities differ by up to ")
    assert all(float(line.split()[3]) < 0.01 for line in lines[3:5])


@needs_llama_cpp
def test_frequencies_that_are_not_read_fail(file, capsys, monkeypatch):
    lm = hf.load(file)
    plain = dataclasses.replace(lm, config=dataclasses.replace(lm.config, positions=()))
    monkeypatch.setattr(hf, "load", lambda _: plain)
    assert cli.main(["check", "gguf", str(file), "--lengths", "600"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: perplexities differ by up to ")


@needs_llama_cpp
def test_what_llama_cpp_cannot_read_is_said(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(llama_cpp.ConfigError, match=r"a\.gguf: llama.cpp cannot read it: the file cannot be loaded"):
        llama_cpp.compute(tmp_path / "a.gguf", rows=[[1, 2]])


def test_what_is_missing_is_said(tmp_path, file, capsys, monkeypatch):
    assert cli.main(["check", "gguf", str(tmp_path / "b.gguf")]) == 2
    assert "b.gguf is not a file" in capsys.readouterr().err
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    assert cli.main(["check", "gguf", str(file)]) == 2
    assert "pip install 'giraffe-jax[oracle]'" in capsys.readouterr().err
