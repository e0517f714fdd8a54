"""The command line as a person meets it: in processes of its own where imports matter, by exit status and message."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from giraffe_jax.cli import VERBS, catalogue, configs, evaluate, generate, main, methods, split_overrides
from giraffe_jax.config import ConfigError

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow_datasets", "grain", "matplotlib", "numpy")


def poisoned(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    """`giraffe *words` in a process where importing anything heavy is an error."""
    folder = tmp_path / "poison"
    for name in HEAVY:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('{name} was imported')")
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "giraffe_jax.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=600)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["methods"], *[[verb, "--help"] for verb in VERBS]])
def test_help_and_the_catalogue_import_nothing_heavy(tmp_path, words):
    done = poisoned(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_every_verb_has_a_module_with_a_line_of_example():
    for verb in VERBS:
        text = (ROOT / "giraffe_jax" / "cli" / f"{'import_' if verb == 'import' else verb}.py").read_text()
        assert re.search(rf"^ *giraffe {verb}\b", text[: text.index("import argparse")], re.MULTILINE), verb


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "usage: giraffe"),
        (["trian"], 2, "Did you mean 'train'?"),
        (["train"], 2, "--config"),
        (["train", "--config=no/such.py", "--workdir=w"], 2, "no/such.py"),
        (["methods", "yran"], 2, "Did you mean 'yarn'?"),
        (["methods", "--config.x=1"], 2, "reads no config"),
        (["import", "no/such", "DST"], 2, "no/such"),
        (["generate", "--source=no/such", "--prompt=x"], 2, "no/such"),
        (["generate", "--source=giraffe-mini", "--prompt-file=no/such.txt"], 2, "no/such.txt"),
        (["report", "no/such"], 2, "no/such"),
        (["run"], 2, "required: FILE. See `giraffe run --help`."),
    ],
)
def test_a_wrong_request_is_one_message_and_status_2(tmp_path, monkeypatch, capsys, words, status, said):
    monkeypatch.chdir(tmp_path)
    assert main(words) == status
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())  # nothing half-written


def write_config(folder: Path, body: str) -> str:
    lines = ["from ml_collections import ConfigDict", "def get_config():", textwrap.indent(body, "    ")]
    (folder / "config.py").write_text("\n".join(lines))
    return str(folder / "config.py")


def test_a_misspelt_key_names_the_nearest(tmp_path, capsys):
    config = write_config(tmp_path, "return ConfigDict(dict(steps=1, data=dict(seq_len=8, batch_size=1)))")
    assert main(["train", f"--config={config}", "--config.optim.lrr=2.0", f"--workdir={tmp_path}/w"]) == 2
    said = capsys.readouterr().err
    assert "config.optim: unknown ['lrr']" in said and "Did you mean 'lr'?" in said
    assert not (tmp_path / "w").exists()


def test_a_key_without_a_reader_is_refused(tmp_path, capsys):
    config = write_config(tmp_path, "return ConfigDict(dict(stepz=1, steps=1))")
    assert main(["train", f"--config={config}", f"--workdir={tmp_path}/w"]) == 2
    assert "stepz" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_overrides_reach_items_of_lists(tmp_path):
    config = write_config(tmp_path, "return ConfigDict(dict(positions=[dict(name='linear', factor=2.0)], x=1))")
    args = argparse_namespace(config, ["--config.positions[0].factor=8.0", "--config.x=3"])
    values = configs.load(args)
    assert values.positions[0]["factor"] == 8.0
    assert values.x == 3


def argparse_namespace(config: str, overrides: list[str]):
    import argparse

    flags = dict(distributed=False, coordinator=None, processes=None, process_id=None)
    return argparse.Namespace(config=config, overrides=overrides, **flags)


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        ("[dict(name='liner')]", "config.positions[0]: unknown method 'liner'"),
        ("3", "config.positions: expected a list"),
    ],
)
def test_an_evaluation_s_positions_are_named_as_its_config_does(tmp_path, capsys, positions, said):
    body = f"return dict(source='giraffe-mini', tasks=[dict(name='lines', lengths=[64])], positions={positions})"
    config = write_config(tmp_path, body)
    assert main(["evaluate", f"--config={config}", f"--workdir={tmp_path}/w"]) == 2
    err = capsys.readouterr().err
    assert said in err and "variants" not in err


@pytest.mark.parametrize(
    ("verb", "body", "said"),
    [
        (
            "run",
            "dict(steps=1, data={})",
            "config.steps: `giraffe run` takes no such config; `giraffe train --config=...",
        ),
        (
            "train",
            "dict(variants=[], tasks=[])",
            "config.variants: `giraffe train` takes no such config; `giraffe run ...",
        ),
        ("run", "dict(variant=[], tasks=[])", "config.variant: unknown key. Did you mean 'variants'?"),
        (
            "search",
            "dict(tasks=[])",
            "config.tasks: `giraffe search` takes no such config; `giraffe evaluate --config=...",
        ),
    ],
)
def test_the_config_of_another_verb_names_that_verb(tmp_path, capsys, verb, body, said):
    config = write_config(tmp_path, f"return {body}")
    first = [verb, config] if verb == "run" else [verb, f"--config={config}"]
    assert main([*first, f"--workdir={tmp_path}/w"]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_a_warning_is_one_line_without_the_code_that_says_it():
    code = """
import sys, warnings
from giraffe_jax import cli

from giraffe_jax.cli import methods
methods.run = lambda args: warnings.warn("checkpoint 3 is damaged")
sys.argv = ["giraffe", "methods"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert (done.returncode, done.stderr) == (0, "giraffe: warning: checkpoint 3 is damaged\n")


def test_split_overrides():
    rest, found = split_overrides(
        ["train", "--config=f", "--config.a=1", "--workdir=w", "--config.b", "2", "--config.c"]
    )
    assert rest == ["train", "--config=f", "--workdir=w"]
    assert found == ["--config.a=1", "--config.b=2", "--config.c"]


def test_debug_shows_the_traceback_and_work_that_fails_is_1(tmp_path, monkeypatch, capsys):
    from giraffe_jax.cli import report

    def fail(args):
        raise OSError(28, "No space left on device", "results.csv")

    monkeypatch.setattr(report, "run", fail)
    assert main(["report", "d"]) == 1
    assert capsys.readouterr().err == "giraffe: results.csv: No space left on device\n"
    assert main(["--debug", "report", "d"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_catalogue_is_the_folder():
    from giraffe_jax import positions

    found = {entry.name: entry for entry in catalogue.catalogue()}
    assert sorted(found) == positions.names()
    for entry in found.values():
        assert entry.summary and entry.description, entry.name


def test_the_catalogue_names_the_ranges_that_are_checked():
    from giraffe_jax.positions import calls

    for name, text in catalogue.RANGES.items():
        assert str(getattr(calls, name).__metadata__[0]) == text.removeprefix("float ")


@pytest.mark.parametrize("name", [entry.name for entry in catalogue.catalogue()])
def test_every_method_can_be_drawn(capsys, name):
    assert main(["methods", name]) == 0
    assert f"dict(name='{name}'" in capsys.readouterr().out


def test_the_drawing_shows_what_linear_does(capsys):
    assert main(["methods", "linear", "factor=4", "--head-dim=32"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("plane")]
    assert len(rows) == 16
    assert all("  0.2500  " + "█" * (methods.WIDTH // 4) in row for row in rows)


def test_a_wrong_parameter_of_a_method(capsys):
    assert main(["methods", "linear", "factr=4"]) == 2
    assert "factr" in capsys.readouterr().err


def test_positions_flag():
    text = '[dict(name="yarn", factor=4.0), {"name": "power", "exponent": 0.5}]'
    assert generate.parse_positions(text) == [dict(name="yarn", factor=4.0), dict(name="power", exponent=0.5)]
    for wrong in ("yarn", "dict(name='yarn')", "[open('x')]", "["):
        with pytest.raises(ConfigError, match="--positions"):
            generate.parse_positions(wrong)


def test_evaluate_is_an_experiment_of_one_variant():
    whole = evaluate.as_experiment(dict(source="a/model", tasks=[1], positions=[dict(name="linear", factor=2.0)]))
    assert whole["variants"] == [dict(name="model", positions=[dict(name="linear", factor=2.0)])]
    assert whole["name"] == "model" and "positions" not in whole
    with pytest.raises(ConfigError, match="giraffe run"):
        evaluate.as_experiment(dict(source="x", variants=[]))
    with pytest.raises(ConfigError, match="source"):
        evaluate.as_experiment(dict(tasks=[]))


def tiny_hf_directory(folder: Path, **changes) -> Path:
    """A Llama of 2 layers with random weights and the byte tokenizer, as a Hugging Face directory."""
    import jax

    from giraffe_jax import hf
    from giraffe_jax.model import ModelConfig, init_params
    from giraffe_jax.tokenizer import ByteTokenizer

    shape: dict[str, Any] = dict(
        vocab_size=258, d_model=32, d_mlp=48, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16
    )
    config = ModelConfig(**shape | changes)
    hf.save(init_params(config, jax.random.key(0)), config, ByteTokenizer(), folder, dtype="float32")
    return folder


def test_import_then_generate_as_from_the_source(tmp_path, capsys):
    positions = ({"name": "linear", "factor": 2.0},)
    source = tiny_hf_directory(tmp_path / "hf", positions=positions)
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    said = []
    for checkpoint in (source, tmp_path / "ours"):
        assert main(["generate", f"--source={checkpoint}", "--prompt=giraffe", "-n", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].strip("\n")
    assert evaluate.own_positions(str(tmp_path / "ours")) == [dict(name="linear", factor=2.0)]
    assert [dict(p) for p in evaluate.own_positions(str(source))] == [dict(name="linear", factor=2.0)]


def test_imported_parameters_are_the_source_s_bit_for_bit(tmp_path):
    import jax

    from giraffe_jax import hf
    from giraffe_jax.loading import load

    source = tiny_hf_directory(tmp_path / "hf")
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    want, got = hf.load(source).params, load(str(tmp_path / "ours")).params
    assert jax.tree.structure(want) == jax.tree.structure(got)
    jax.tree.map(np.testing.assert_array_equal, want, got)


def test_import_overwrites_nothing(tmp_path, capsys):
    source = tiny_hf_directory(tmp_path / "hf")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.txt").write_text("precious")
    assert main(["import", str(source), str(tmp_path / "ours")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "ours").iterdir()] == ["thesis.txt"]


def test_export_of_an_import_is_the_directory_again(tmp_path, capsys):
    from safetensors.numpy import load_file

    source = tiny_hf_directory(tmp_path / "hf")
    assert main(["import", str(source), str(tmp_path / "ours")]) == 0
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "again"), "--max-len=512"]) == 0
    written, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", source))
    assert written.keys() == original.keys()
    assert all((written[name] == original[name].astype(written[name].dtype)).all() for name in original)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["max_position_embeddings"] == 512
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "again")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("found", [(2e-4, 0.0, 0.0), (0.0, 2e-4, 0.0), (0.0, 0.0, 2e-4)])
def test_check_methods_fails_where_too_much_differs(capsys, monkeypatch, found):
    from giraffe_jax.cli import check_methods

    monkeypatch.setattr(check_methods, "differences", lambda name, program: found)
    assert main(["check", "methods", "rerope", "dca"]) == 1
    monkeypatch.setattr(check_methods, "differences", lambda name, program: (9e-5, 9e-5, 9e-5))
    assert main(["check", "methods", "rerope", "dca"]) == 0
    assert main(["check", "methods", "rerop"]) == 2
    assert "rerope" in capsys.readouterr().err


@pytest.mark.slow
def test_check_methods_measures(capsys):
    assert main(["check", "methods", "rerope"]) == 0
    assert "largest of 1 methods: decoding " in capsys.readouterr().out
