"""The search: losses of tables against one model at a time, constraints, one compilation, resuming."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import giraffe_jax.lab.search
from giraffe_jax.config import ConfigError, build
from giraffe_jax.data.pipeline import make_pipeline
from giraffe_jax.hf import export
from giraffe_jax.inference import score
from giraffe_jax.lab import search as lab_search
from giraffe_jax.lab.search import ROWS, search, table_losses
from giraffe_jax.lab.tables import SearchConfig, crossover, divisors, first, mutation, offspring
from giraffe_jax.loading import load
from giraffe_jax.positions import frequencies
from giraffe_jax.training.loop import POSITIONS
from tests.cli.test_cli import tiny_hf_directory
from tests.close import close

ABOUT = dict(head_dim=16, theta=10000.0, original_len=32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny_hf_directory(tmp_path_factory.mktemp("hf") / "model", num_layers=2, original_len=32))


def values(source="", **changes):
    synthetic = dict(kinds=("lines",), min_len=120, answer_weight=1.0, drawn_weight=0.0, text_weight=0.0)
    data = dict(seq_len=128, batch_size=8, sources=[dict(kind="synthetic", synthetic=synthetic)], prefetch=1)
    small = dict(generations=3, population=10, parents=4, mutations=3, crossovers=3)
    return dict(source=source, factor=4.0, data=data, batches=2, **small) | changes


def rows(workdir):
    return [json.loads(line) for line in (workdir / ROWS).read_text().splitlines()]


def test_losses_are_those_of_the_answers_of_each_table_alone(source):
    """Each table once more by decode.score, with methods instead of a table, and the answers picked by hand."""
    config = build(SearchConfig, values(source))
    loaded = load(source)
    batches = [make_pipeline(config.data, loaded.tokenizer).batch(i) for i in range(2)]
    methods = [[], [dict(name="linear", factor=4.0)], [dict(name="ntk", factor=4.0)]]
    inv_freq = np.stack([frequencies(m, **ABOUT)[0] for m in methods])
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    for at_once in (1, 2, 3):
        got = table_losses(
            loaded.params, jax.tree.map(jax.numpy.asarray, stacked), loaded.config.bind(), inv_freq,
            model=loaded.config, at_once=at_once,
        )  # fmt: skip
        want = []
        for scaling in methods:
            nats, count = 0.0, 0
            for b in batches:
                encoding = loaded.config.bind(scaling=scaling)
                nll, _ = score(
                    loaded, b["tokens"], encoding, b["segments"],
                    b["positions"],
                )  # fmt: skip
                for row, text in zip(np.asarray(nll), b["tokens"], strict=True):
                    answers = by_text(loaded.tokenizer, text)
                    nats, count = nats + row[answers].sum(dtype=np.float64), count + len(answers)
            want.append(nats / count)
        close(got, want, ulps=256)
    assert len({round(x, 4) for x in want}) == 3


def by_text(tokenizer, tokens):
    """Indices of the nlls of answers: the bytes after ` ask WORD`, up to the line's end."""
    text = tokenizer.decode(tokens.tolist())
    found, at = [], 0
    for line in text.splitlines(keepends=True):
        if line.startswith("ask ") and line.endswith("\n"):
            start = at + line.rindex(" ")
            found += range(start - 1, at + len(line) - 1)
        at += len(line)
    return found


def test_a_whole_search_compiles_once_and_finds_no_worse_than_its_starts(source, tmp_path, capsys, traces):
    seen = traces(giraffe_jax.lab.search, "eval_step")
    found = search(values(source), tmp_path)
    assert len(seen) == 1
    recorded = rows(tmp_path)
    assert [r["generation"] for r in recorded] == [0, 1, 2, 3] and [r["tables"] for r in recorded] == [10, 6, 6, 6]
    every = {tuple(t): x for r in recorded for t, x in zip(r["divisors"], r["nll"], strict=True)}
    assert len(every) == 28  # no table is measured twice
    assert found.nll == min(every.values()) == recorded[-1]["best"] == found.history[-1]
    assert list(found.history) == sorted(found.history, reverse=True)
    linear = recorded[0]["divisors"][0]
    assert linear == [4.0] * 8 and found.nll <= every[tuple(linear)]
    assert [found.entry] == json.loads((tmp_path / POSITIONS).read_text())
    printed = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(printed.partition("positions = ")[2]) == [found.entry]

    got, gain = frequencies([found.entry], **ABOUT)
    np.testing.assert_allclose(got, 10000.0 ** (-np.arange(8) / 8) / recorded[-1]["best_divisors"], rtol=1e-7)
    assert gain == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))
    loaded = load(source, dict(positions=[found.entry]))
    rope = export.config_to_json(loaded.config)["rope_parameters"]
    assert rope["long_factor"] == rope["short_factor"] == pytest.approx(recorded[-1]["best_divisors"])
    assert rope["attention_factor"] == pytest.approx(gain, rel=1e-7)


def test_a_killed_search_goes_on_as_if_it_had_never_stopped(source, tmp_path):
    whole = search(values(source), tmp_path / "whole", quiet=True)
    run = tmp_path / "killed"
    search(values(source, generations=1), run, quiet=True)
    with open(run / ROWS, "a") as file:
        file.write('{"generation": 2, "di')  # what a kill may leave
    (run / POSITIONS).unlink()
    assert search(values(source), run, quiet=True) == whole
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run)]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / "whole")]
    assert json.loads((run / POSITIONS).read_text()) == [whole.entry]
    with pytest.raises(ConfigError, match="holds another run: config.factor was 4.0, now 8.0"):
        search(values(source, factor=8.0), run, quiet=True)
    assert search(values(source, seed=1), tmp_path / "seed", quiet=True).history != whole.history


CONFIG = build(SearchConfig, values(factor=8.0))
TABLES = st.lists(st.integers(0, CONFIG.top), min_size=16, max_size=16).map(lambda xs: tuple(sorted(xs)))


@settings(max_examples=60)
@given(TABLES, TABLES, st.integers(0, 1000))
def test_children_are_monotone_and_in_range(one, two, seed):
    rng = np.random.default_rng(seed)
    for child in (mutation(rng, one, {}, CONFIG), crossover(rng, one, two, {}, CONFIG)):
        found = divisors(child, CONFIG)
        assert found.min() >= 1.0 and found.max() <= 10.0 and (np.diff(found) >= 0).all()
    taken = crossover(rng, one, two, {one: 0.0}, CONFIG)
    assert taken != one or one == two


def test_each_plane_mutates_with_the_configs_probability():
    table, rng = tuple(range(0, 160, 10)), np.random.default_rng(0)
    children = np.array([mutation(rng, table, {}, CONFIG) for _ in range(4000)])
    moved = (children != np.array(table)).mean()
    # A plane drawn anew keeps its value once in some twenty draws.
    assert 0.3 * 18 / 21 < moved < 0.3
    many = np.array([crossover(rng, table, tuple(x + 1 for x in table), {}, CONFIG) for _ in range(4000)])
    assert abs((many - np.array(table)).mean() - 0.3) < 0.01


def test_the_first_population_starts_from_pi_ntk_and_yarn():
    from giraffe_jax.model import ModelConfig

    shape = dict(vocab_size=8, d_model=8, d_mlp=8, num_layers=1, num_heads=1, num_kv_heads=1)
    model = ModelConfig(**shape, head_dim=32, theta=10000.0, original_len=256)
    tables = first(np.random.default_rng(0), CONFIG, model)
    found = [divisors(t, CONFIG) for t in tables]
    assert len(set(tables)) == len(tables) == CONFIG.population
    np.testing.assert_allclose(found[0], 8.0)
    np.testing.assert_allclose(found[1], 8.0 ** (np.arange(16) / 15), atol=0.0051)  # NTK: th_i / s^(2i / (d - 2))
    assert found[2][0] == 1.0 and found[2][-1] == 8.0  # YaRN keeps the fastest plane, interpolates the slowest
    assert offspring(np.random.default_rng(3), tables[:4], dict.fromkeys(tables), CONFIG) == offspring(
        np.random.default_rng(3), tables[:4], dict.fromkeys(tables), CONFIG
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(factor=1.0), "factor: must be > 1"),
        (dict(parents=1), "parents: must be >= 2"),
        (dict(mutations=0, crossovers=0), "mutations + crossovers >= 1"),
        (dict(tables_at_onec=3), "Did you mean 'tables_at_once'?"),
        (dict(starts=[[dict(name="yran")]]), "config.starts[0][0]"),
        (dict(model=dict(positions=[])), "config.model.positions"),
    ],
)
def test_wrong_requests(changes, message):
    with pytest.raises(ConfigError) as error:
        build(SearchConfig, values("model", **changes))
    assert message in str(error.value)


def test_an_objective_without_weight_is_refused(source, tmp_path):
    config = values(source)
    config["data"]["sources"][0]["synthetic"]["answer_weight"] = 0.0
    with pytest.raises(ConfigError, match="all tokens have weight 0"):
        search(config, tmp_path, quiet=True)


def test_the_default_numbers_are_those_of_the_released_code():
    config = SearchConfig(source="x", factor=4.0, data=CONFIG.data)
    numbers = (config.population, config.parents, config.mutations, config.crossovers, config.probability, config.step)
    assert numbers == (64, 32, 16, 16, 0.3, 0.01) and config.generations == 40 and config.top == 400
    assert lab_search.gain(config, load("giraffe-mini").config) == pytest.approx(
        math.sqrt(1 + math.log(4) / math.log(256))
    )
