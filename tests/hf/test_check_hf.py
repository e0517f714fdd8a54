"""`giraffe check hf`: what is right passes with its figure last, and what is wrong by a little does not."""

import dataclasses

import pytest
from hf_models import random_tensors, write

from giraffe_jax import cli, hf

pytestmark = pytest.mark.oracle
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path / "hf", random_tensors(), rope_parameters=YARN, max_position_embeddings=256)


def test_one_that_is_right_passes_at_the_three_lengths(directory, capsys):
    assert cli.main(["check", "hf", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["32", "64", "256"]
    assert lines[-1].startswith("passed: logits differ by up to ") and "random ids" in lines[0]
    assert float(lines[-1].split()[-4]) < 2e-5


def test_frequencies_of_another_formula_fail(directory, capsys, monkeypatch):
    load = hf.load

    def other(source, **settings):
        lm = load(source, **settings)
        return dataclasses.replace(
            lm, config=dataclasses.replace(lm.config, positions=(dict(name="yarn_paper", factor=4.0),))
        )

    monkeypatch.setattr(hf, "load", other)
    assert cli.main(["check", "hf", str(directory), "--lengths", "64"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: logits differ by up to ")


def test_a_text_by_the_directorys_own_tokenizer(tmp_path, capsys):
    lm = hf.load("giraffe-mini")
    out = hf.save(lm.params, lm.config, lm.tokenizer, tmp_path / "mini", dtype="float32")
    assert cli.main(["check", "hf", str(out), "--lengths", "200"]) == 0
    row = capsys.readouterr().out.splitlines()[3].split()
    assert row[0] == "200" and row[5][:3] == row[6][:3]  # both perplexities
    (tmp_path / "short.txt").write_text("too short")
    assert cli.main(["check", "hf", str(out), "--lengths", "200", "--text", str(tmp_path / "short.txt")]) == 2
    assert "tokens, but --lengths needs 200" in capsys.readouterr().err


def test_what_is_no_directory_is_refused(tmp_path, capsys):
    assert cli.main(["check", "hf", str(tmp_path)]) == 2
    assert "no config.json in it" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_read_by_peft(directory, tmp_path, capsys, beside):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    where = directory if beside else tmp_path / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(where)
    flags = [] if beside else [f"--base={directory}"]
    assert cli.main(["check", "hf", str(where), "--lengths", "32", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("passed: logits differ by up to ")
