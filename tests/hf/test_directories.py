"""`giraffe import` and `giraffe export`: what they say, and that a destination is whole, new, or not there at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hf_models import CONFIG, random_tensors, write

from giraffe_jax import hf
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError
from giraffe_jax.hf.write import check_new, new_directory
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.tokenizer import ByteTokenizer

BYTES = dict(
    model_type="llama", vocab_size=258, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
)  # fmt: skip


def source(folder: Path, **changes) -> Path:
    """A tiny Llama with the byte tokenizer."""
    write(folder, random_tensors(c=BYTES), BYTES, **changes)
    for name, content in ByteTokenizer().files().items():
        (folder / name).write_bytes(content)
    return folder


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.mark.parametrize("verb", ["import", "export"])
def test_what_others_have_beside_the_destination_is_left_alone(tmp_path, verb):
    """A folder of the name that imports once wrote in, what a kill left, and another's with this very process's id."""
    given = source(tmp_path / "in")
    others = ["out.part", ".out.writing-1", f".out.writing-{os.getpid()}"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine")
    assert main([verb, str(given), str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in", "out", *others])
    assert all((tmp_path / name / "precious.txt").read_text() == "mine" for name in others)


def test_of_two_writers_to_one_place_the_first_to_end_wins_and_the_second_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"out: was made meanwhile by another; nothing is overwritten"):
        with new_directory(tmp_path / "out") as second:
            (second / "a.txt").write_text("second")
            with new_directory(tmp_path / "out") as first:
                assert first != second
                (first / "a.txt").write_text("first")
    assert tree(tmp_path) == {"out", "out/a.txt"} and (tmp_path / "out" / "a.txt").read_text() == "first"


def test_missing_parents_are_made_and_go_again_after_a_failure(tmp_path):
    with new_directory(tmp_path / "a" / "b" / "c") as folder:
        (folder / "x").touch()
    assert tree(tmp_path) == {"a", "a/b", "a/b/c", "a/b/c/x"}
    with pytest.raises(KeyboardInterrupt):
        with new_directory(tmp_path / "a" / "d" / "e") as folder:
            (folder / "x").touch()
            raise KeyboardInterrupt
    assert tree(tmp_path) == {"a", "a/b", "a/b/c", "a/b/c/x"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with new_directory(tmp_path / "link") as folder:
        (folder / "x").touch()
    assert (tmp_path / "empty" / "x").is_file() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_destination_that_cannot_be_is_refused_before_the_weights_are_read(tmp_path, capsys, monkeypatch, verb):
    given = source(tmp_path / "in")
    (given / "model.safetensors").write_bytes(b"reading this would be another message")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for place, said in (
        ("file", "exists already; nothing is overwritten"),
        ("full", "exists already; nothing is overwritten"),
        ("file/inside", "file is a file, so no directory can be made in it"),
        ("file/far/inside", "file is a file, so no directory can be made in it"),
    ):
        assert main([verb, str(given), str(tmp_path / place)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and str(tmp_path / place) in err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    assert main([verb, str(given), str(tmp_path / "new")]) == 2
    assert f"{tmp_path} cannot be written in" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "in"]


def test_a_folder_that_the_system_refuses_is_one_message():
    check_new("/proc/giraffe")
    with pytest.raises(ConfigError, match=r"/proc/giraffe: /proc/\.giraffe\.writing-\d+ cannot be made: "):
        with new_directory("/proc/giraffe"):
            pass


LISTS = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[1.0] * 3, factor=2.0)


def test_a_refused_import_leaves_nothing_and_can_be_repeated(tmp_path, capsys, monkeypatch):
    given = source(tmp_path / "in", rope_parameters=LISTS | dict(original_max_position_embeddings=16))
    assert main(["import", str(given), str(tmp_path / "made" / "out")]) == 2
    assert "long_factor must have head_dim / 2 = 4 values, got 3" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    source(tmp_path / "in")

    def full(*args, **keys):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("giraffe_jax.checkpoint.save", full)
        assert main(["import", str(given), str(tmp_path / "made" / "out")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert main(["import", str(given), str(tmp_path / "made" / "out")]) == 0


@pytest.mark.parametrize("positions,words", [
    ((), "positions as rope_theta 10000, to 2,048 tokens"),
    ((dict(name="ntk", factor=4.0),), "positions as rope_theta 48760.5, to 8,192 tokens"),
    ((dict(name="yarn", factor=4.0),), "positions as rope_type yarn, to 8,192 tokens"),
    ((dict(name="dynamic", factor=4.0),), "positions as rope_type dynamic, growing with the text beyond 2,048 tokens"),
    ((dict(name="yarn_paper", factor=2.0),), "positions as a longrope table, to 4,096 tokens"),
])  # fmt: skip
def test_export_says_how_positions_were_written(tmp_path, capsys, positions, words):
    config = ModelConfig(258, 32, 48, 1, 2, 1, 16, positions=positions)
    hf.save(init_params(config, jax.random.key(0)), config, ByteTokenizer(), tmp_path / "in", dtype="float32")
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    if not positions or positions[0]["name"] != "dynamic":
        assert main(["export", str(tmp_path / "in"), str(tmp_path / "short"), "--max_len", "100"]) == 0
        assert json.loads((tmp_path / "short" / "config.json").read_text())["max_position_embeddings"] == 100
    out = capsys.readouterr().out
    assert f"parameters as float32, {words}, in {tmp_path / 'out'}" in out
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "none"), "--max-len=0"]) == 2
    assert "--max-len: must be >= 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        dict(positions=(dict(name="t5"),)),
        dict(positions=(dict(name="ssmax"),)),
        dict(qk_norm=True),
        dict(positions=(dict(name="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, start_tokens=4),)),
        dict(positions=(dict(name="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, factor=2, dynamic=True),)),
        dict(positions=(dict(name="longrope", short_factor=[[1.0] * 4] * 2, long_factor=[[2.0] * 4, [3.0] * 4]),)),
    ],
)  # fmt: skip
def test_what_hugging_face_cannot_say_is_refused_with_nothing_written(tmp_path, change):
    config = ModelConfig(258, 32, 48, 2, 2, 1, 8, **change)
    with pytest.raises(ConfigError, match=r"cannot be exported: Hugging Face's Llama knows|does not normalise"):
        hf.save(init_params(config, jax.random.key(0)), config, None, tmp_path / "out")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("change", [dict(head_dim=2**29), dict(hidden_size=2**29), dict(hidden_size=2**29, head_dim=8)])
def test_huge_sizes_are_refused_before_anything_is_allocated(tmp_path, change):
    write(tmp_path, random_tensors(), CONFIG | change)
    code = (
        "import resource, sys, time; from giraffe_jax import hf; from giraffe_jax.config import ConfigError\n"
        "start, used = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: hf.load(sys.argv[1])\n"
        "except ConfigError as e: print(e)\n"
        "print(time.time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    message, used = done.stdout.splitlines()
    assert "head_dim must be at most 65536" in message or "config says [96, 536870912]" in message
    seconds, kilobytes = map(float, used.split())
    assert seconds < 5 and kilobytes < 500_000  # 0.1 s and 20 MB on an idle machine
