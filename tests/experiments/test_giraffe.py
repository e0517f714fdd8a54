"""The Giraffe study: its full-size configs build and lower, its data pipeline reads the published format, and its
statistics are those of independent formulas."""

import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats as scipy_stats

import giraffe_jax
from configs import models
from giraffe_jax import config, records, sharding
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.lab import cells, spec
from giraffe_jax.model import ModelConfig, num_params
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.program import program, state_shapes

HERE = Path(__file__).parent.parent.parent / "experiments" / "giraffe"
sys.path.insert(0, str(HERE))  # as of a script that is run: compare.py imports what stands beside it
STUDY, COMPARE, PREPARE, PAIRS = (runpy.run_path(str(HERE / f"{name}.py")) for name in
                                  ("config", "compare", "prepare", "other_pairs"))  # fmt: skip
sys.path.remove(str(HERE))
FULL = {
    "Llama-7b-hf": (models.llama_7b, 6_738_415_616, 2048),
    "Llama-13b-hf": (models.llama_13b, 13_015_864_320, 2048),
    "Llama-2-7b-hf": (models.llama2_7b, 6_738_415_616, 4096),
    "Llama-2-13b-hf": (models.llama2_13b, 13_015_864_320, 4096),
}


def sample(folder: Path) -> Path:
    """A file like RedPajama's sample: long and short documents, each with its meta."""
    rows = [dict(text="An essay. " * n, meta=dict(source="c4")) for n in (10, 2100, 3000, 4000, 2047, 99_999, 100_000)]
    file = folder / "sample.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def full(name, text="train.jsonl"):
    return config.build(spec.ExperimentConfig, STUDY["get_config"](f"/data/{name},{text}"))


@pytest.mark.parametrize("name", FULL)
def test_full_size_is_the_papers(name):
    model, parameters, original_len = FULL[name]
    built = full(name)
    (lines,) = spec.check(built)
    assert built.original_len == original_len
    assert lines.lengths[0] == 2490 * original_len // 2048 and lines.n == 50 and lines.new_tokens == 35
    loaded = config.build(ModelConfig, {**model(), **built.model})
    assert num_params(loaded) == parameters and loaded.original_len == original_len
    assert loaded.dtype == "bfloat16" and loaded.param_dtype == "float32"
    for variant in built.variants:
        loaded.bind(lines.lengths[-1], scaling=spec.read_with(variant))
        if variant.train is not None:
            run = spec.train_config(built, variant, 0)
            tokens = run.data.batch_size * run.data.seq_len
            assert (tokens, run.optim.lr, run.optim.warmup_steps) == (32 * 2 * original_len, 2e-5, 300)
    assert len({cells.training_of(built, v, 0, Path()) for v in built.variants if v.train}) == 10


def lowered(name, variant, original_len):
    """The step of one variant's training at full size, lowered for eight devices: shapes and shardings alone."""
    built = full(name)
    (chosen,) = (v for v in built.variants if v.name == variant)
    run = spec.train_config(built, chosen, 0)
    model = config.build(ModelConfig, {**FULL[name][0](), **run.model})
    mesh = sharding.make_mesh(run.mesh)
    state = state_shapes(run, model, mesh)
    step = program(run, model, mesh).lower(state)
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    return step, (run.data.batch_size, run.data.seq_len)


@pytest.mark.parametrize(("name", "variant"), [("Llama-13b-hf", "scale 4"), ("Llama-2-7b-hf", "power 0.5, randomised")])
def test_a_full_size_step_lowers_on_eight_devices(name, variant):
    step, rows = lowered(name, variant, FULL[name][2])
    assert f"tensor<{rows[0]}x{rows[1]}x" in step.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_all_full_size_steps_lower(name):
    for variant in STUDY["trained_with"](FULL[name][2]):
        lowered(name, variant, FULL[name][2])


def test_the_published_format_becomes_batches(tmp_path, capsys):
    PREPARE["main"]([str(sample(tmp_path)), "--out", str(tmp_path / "out")])
    assert "4 of 7 documents are long enough: 1 held out" in capsys.readouterr().out
    kept = [len(json.loads(row)["text"]) for name in ("train", "heldout")
            for row in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]  # fmt: skip
    assert sorted(kept) == [21_000, 30_000, 40_000, 999_990]
    built = full("Llama-13b-hf", str(tmp_path / "out" / "train.jsonl"))
    run = spec.train_config(built, built.variants[1], 0)
    pipeline = make_pipeline(run.data, ByteTokenizer())
    batch = next(iter(pipeline.iterate(0)))
    assert batch["tokens"].shape == (32, 4096) and batch["weights"].mean() > 0.9


def test_a_document_without_text_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    with pytest.raises(SystemExit, match=r"bad\.jsonl:2"):
        PREPARE["main"]([str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "out")])


def test_other_pairs_are_an_interleaved_rotation():
    """Scores of queries and keys in the other order are those of a float64 rotation of neighbouring features."""
    rng, d, at = np.random.default_rng(0), 8, 5.0
    theta = 10000.0 ** (-np.arange(0, d, 2) / d)

    def neighbours(x, position):
        z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * theta)
        return np.stack([z.real, z.imag], 1).ravel()

    def halves(x, position):
        z = (x[: d // 2] + 1j * x[d // 2 :]) * np.exp(1j * position * theta)
        return np.concatenate([z.real, z.imag])

    q, k = rng.normal(size=(2, d))
    params = dict(layers=dict(attention={n: dict(kernel=x) for n, x in (("q", q), ("k", k))}, mlp={}), embed=0)
    moved = PAIRS["other_pairs"](params, d)["layers"]["attention"]
    q2, k2 = moved["q"]["kernel"], moved["k"]["kernel"]
    assert halves(q2, at) @ halves(k2, 0) == pytest.approx(neighbours(q, at) @ neighbours(k, 0), abs=1e-12)
    assert halves(q, at) @ halves(k, 0) != pytest.approx(neighbours(q, at) @ neighbours(k, 0), abs=1e-3)


def test_other_pairs_change_nothing_but_queries_and_keys(tmp_path):
    PAIRS["main"]([str(tmp_path / "pairs")])
    here, there = giraffe_jax.load("giraffe-mini"), giraffe_jax.load(str(tmp_path / "pairs"))
    flat = [dict(jax.tree_util.tree_leaves_with_path(x.params)) for x in (here, there)]
    changed = {jax.tree_util.keystr(p) for p in flat[0] if not np.array_equal(flat[0][p], flat[1][p])}
    assert {name.split("'")[5] for name in changed} == {"q", "k"}


def test_published_runs_have_their_names_here():
    names = {v["name"] for v in STUDY["grid"](256, STUDY["mini_training"]())}
    published = COMPARE["read_published"]()
    assert len(set(published) & names) == 9
    assert published["scale 16"].tolist() == [0.64, 0.42, 0.56, 0.62, 0.40, 0.22, 0.14, 0.12, 0.10]


def test_rank_correlation_and_its_chance_are_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = rng.integers(0, 6, size=(2, 7)).astype(float)
        expected = scipy_stats.spearmanr(x, y).statistic
        assert COMPARE["spearman"](x, y) == pytest.approx(expected)
        test = scipy_stats.permutation_test(
            (x,), lambda a, y=y: scipy_stats.spearmanr(a, y).statistic, permutation_type="pairings",
            alternative="greater", n_resamples=np.inf,
        )  # fmt: skip
        assert COMPARE["permuted"](x, y) == pytest.approx(test.pvalue)
    assert np.isnan(COMPARE["spearman"](np.ones(3), np.arange(3.0)))


def test_a_difference_of_bases_and_questions_has_the_interval_of_its_spread():
    """Values whose variance is all between questions, or all between bases: the interval is Student's of their mean."""
    rng = np.random.default_rng(1)
    by_question, by_base = rng.normal(size=400), rng.normal(size=12)
    runs = [(base, seed) for base in range(12) for seed in (0, 1)]
    zero = {run: np.zeros((2, 400)) for run in [*runs, (12, 0)]}  # of one base more
    for mine, value, t in (
        ({run: np.broadcast_to(by_question, (2, 400)) for run in runs}, by_question, 1.966),
        ({run: np.full((2, 400), by_base[run[0]]) for run in runs}, by_base, 2.201),
    ):
        found, low, high = COMPARE["difference"](mine, zero)
        assert found == pytest.approx(value.mean())
        half = t * value.std(ddof=1) / np.sqrt(len(value))
        assert (high - low) / 2 == pytest.approx(half, rel=0.1) and (low + high) / 2 == pytest.approx(
            found, abs=half / 5
        )


def test_what_a_workdir_measured_is_saved_and_read_again(tmp_path):
    """Two seeds of one variant, two windows of each of two documents, the training of the second seed alone; rows in
    another order than the config's variants."""
    other = dict(variant="w", task="lines", length=32, seed=0, example=0, metrics=dict(teacher=1))
    rows = [other] + [
        dict(variant="v", task="lines", length=length, seed=seed, example=i, metrics=dict(teacher=int(i < 2 + seed)))
        for length in (32, 64) for seed in (0, 1) for i in range(4)
    ]  # fmt: skip
    rows += [
        dict(variant="v", task="perplexity", length=32, seed=0, example=i, document="ab"[i // 2], metrics=dict(nll=nll))
        for i, nll in enumerate((1.0, 2.0, 3.0, 3.5))
    ]
    train = tmp_path / "run" / "train" / records.slug("v", 1)
    train.mkdir(parents=True)
    (train / "metrics.jsonl").write_text('{"step": 1, "loss": 3.25}\n{"step": 2, "loss": 3.0}\n')
    variants = [dict(name="v", positions=[], train={}), dict(name="w", positions=[])]
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(dict(config=dict(seeds=[0, 1], variants=variants))))
    (tmp_path / "run" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = COMPARE["of_all"]([str(tmp_path / "run")])
    assert list(dict.fromkeys(name for _, name, *_ in found)) == ["v", "w"]
    COMPARE["save"](tmp_path / "saved.csv", found)
    again = COMPARE["read_saved"](tmp_path / "saved.csv")
    assert again.keys() == found.keys() and all(np.array_equal(again[key], found[key]) for key in found)
    mini = "giraffe-mini"
    assert again[mini, "v", 0, "lines", 64].tolist() == [1, 1, 0, 0] and again[mini, "v", 1, "training", 0] == [3.25]
    assert again[mini, "v", 0, "perplexity", 32].tolist() == [1.5, 3.25]
    right, losses = COMPARE["by_variant"](again, [32, 64])
    shares = {run: x.mean(-1).tolist() for run, x in right["v"].items()}
    assert shares == {(mini, 0): [0.5, 0.5], (mini, 1): [0.75, 0.75]}
    assert {n: {run: x.tolist() for run, x in own.items()} for n, own in losses["v"].items()} == {
        32: {(mini, 0): [[1.5, 3.25]]}
    }
    # Untrained, the texts are read once, for both seeds; read at another scale, trained ones are trained ones.
    untrained = {key: x for key, x in again.items() if key[3] != "training"}
    assert list(COMPARE["by_variant"](untrained, [32, 64])[1]["v"][32]) == [(mini, 0), (mini, 1)]
    scaled = {(base, "v -> 2", *rest): x for (base, name, *rest), x in untrained.items() if name == "v"} | again
    assert list(COMPARE["by_variant"](scaled, [32, 64])[1]["v -> 2"][32]) == [(mini, 0)]
    with pytest.raises(SystemExit, match=r"'v' of base giraffe-mini and seed 0 is in an earlier argument too.*BASE="):
        COMPARE["of_all"]([str(tmp_path / "run"), str(tmp_path / "saved.csv")])
    both = COMPARE["of_all"]([str(tmp_path / "run"), f"base-4={tmp_path / 'run'}"])
    assert {base for base, *_ in both} == {mini, "base-4"} and len(both) == 2 * len(found)


def test_a_saved_file_without_bases_is_of_the_packaged_one(tmp_path):
    (tmp_path / "old.csv").write_text("variant,seed,what,length,values\nv,2,lines,311,101\n")
    found = COMPARE["read_saved"](tmp_path / "old.csv")
    assert {key: x.tolist() for key, x in found.items()} == {("giraffe-mini", "v", 2, "lines", 311): [1, 0, 1]}
    assert len(COMPARE["read_saved"](HERE / "results.csv")) == len((HERE / "results.csv").read_text().splitlines()) - 1


def test_several_bases_are_one_table_with_ranks_and_the_papers_order(tmp_path, capsys):
    """Three bases that differ by 0, 5 and 10 points in all methods alike, and answer the paper's runs in its order, the
    first two excepted: the correlation is 1 - 6 x 2 / (9 x 80), ranks are certain, what one base has is marked."""
    published = COMPARE["read_published"]()
    config = STUDY["grid"](256, STUDY["mini_training"]())
    names = [v["name"] for v in config if v["name"] in published]
    names.sort(key=lambda name: published[name].mean())
    names[:2] = names[1::-1]
    lengths = STUDY["lengths_of"](256)
    words, rng = [], np.random.default_rng(0)
    for base in range(3):
        hard = np.stack([rng.permutation(100) for _ in lengths])  # of the same questions, other ones are hard
        made = {}
        for i, name in enumerate([*names, *(["as it is"] if base == 0 else [])]):
            for at, length in enumerate(lengths):
                made[f"base-{base}", name, 0, "lines", length] = (hard[at] < 8 * i + 5 * base).astype(float)
                made[f"base-{base}", name, 0, "perplexity", length] = np.linspace(3, 4, 6) - 0.1 * i
        COMPARE["save"](tmp_path / f"{base}.csv", made)
        words.append(str(tmp_path / f"{base}.csv"))
    COMPARE["main"]([*words, "--save", str(tmp_path / "all.csv")])
    said = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): [x.strip() for x in line.split("|")[2:-1]] for line in said.splitlines()
            if line.startswith("| ") and line.count("|") == 15}  # fmt: skip
    for i, name in enumerate(names):
        assert rows[name][-4] == f"{8 * i + 5:.0f}" + f" ({100 * published[name].mean():.0f})"
        assert rows[name][-2:] == [str(9 - i), f"{9 - i} to {9 - i}"]
    assert rows["as it is (1 of 3 bases)"][-4:] == ["72", "", "", ""]
    assert "3 bases: base-0, base-1, base-2." in said
    correlation = said.split("mean accuracies: ")[1]
    assert correlation.startswith("0.98 (0.") and float(correlation[6:10]) > 0.7
    COMPARE["main"]([str(tmp_path / "all.csv")])
    assert capsys.readouterr().out == said


def test_the_grid_is_the_same_on_another_base():
    here, there = STUDY["get_config"](), STUDY["get_config"]("mini,runs/bases/base-4")
    assert there.source == "runs/bases/base-4" and there.title.endswith("base base-4") and here.source == "giraffe-mini"
    assert STUDY["get_config"]("mini").to_dict() == here.to_dict()
    there.source, there.title = here.source, here.title
    assert there.to_dict() == here.to_dict()
