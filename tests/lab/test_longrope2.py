"""LongRoPE2's recipe of the search: which planes may be critical, and what every table of a search keeps to."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_jax.config import ConfigError, build
from giraffe_jax.hf import export
from giraffe_jax.lab.search import ROWS, best, search
from giraffe_jax.lab.tables import (
    NTK,
    SearchConfig,
    critical,
    critical_planes,
    crossover,
    divisors,
    first,
    mutation,
    offspring,
)
from giraffe_jax.loading import load
from giraffe_jax.model import ModelConfig
from giraffe_jax.positions import bind, frequencies
from tests.cli.test_cli import tiny_hf_directory
from tests.lab.test_search import rows, values

SHAPE = dict(head_dim=16, theta=10000.0, original_len=256)  # periods in 256 tokens: 12.9 of plane 1, 1.3 of plane 3
CANDIDATES = {2, 3, 4}


def model(**about):
    shape = dict(vocab_size=8, d_model=8, d_mlp=8, num_layers=1, num_heads=1, num_kv_heads=1)
    return ModelConfig(**shape, **about)


def longrope2(source="", **changes):
    return values(source, recipe="longrope2", model=dict(original_len=256), **changes)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny_hf_directory(tmp_path_factory.mktemp("hf") / "model", num_layers=2, original_len=32))


def check_table(found, c, factor):
    """A table of 8 planes in the paper's terms: the base that gives plane c its divisor gives those below it theirs."""
    found = np.asarray(found)
    assert factor <= found[c:].min() and found.max() <= 2 * factor and (np.diff(found) >= 0).all()
    base = 10000.0 * found[c] ** (8 / c)
    np.testing.assert_allclose(found[:c], [(base / 10000.0) ** (2 * i / 16) for i in range(c)], atol=1e-8)


@pytest.mark.parametrize(
    ("about", "theoretical", "real"),
    [  # the paper's figure 4, in planes
        (dict(head_dim=96, theta=10000.0, original_len=2048), 31, 25),
        (dict(head_dim=128, theta=500000.0, original_len=8192), 35, 30),
    ],
)
def test_candidates_end_at_the_papers_theoretical_plane(about, theoretical, real):
    found = critical_planes(model(**about))
    assert found[-1] == theoretical and real in found
    periods = about["original_len"] / (2 * math.pi * about["theta"] ** (np.arange(64) * 2 / about["head_dim"]))
    assert found[0] == np.argmax(periods < 10) and found[-1] == np.argmax(periods < 1)


def test_candidates_are_planes_that_there_are():
    assert list(critical_planes(model(head_dim=16, theta=10000.0, original_len=4))) == [0]  # no plane turns once
    assert list(critical_planes(model(head_dim=16, theta=100.0, original_len=2**20))) == [7]  # all do often


def test_the_first_population_is_algorithm_1s_for_every_candidate():
    config = build(SearchConfig, longrope2(factor=8.0, population=64))
    tables = first(np.random.default_rng(0), config, model(**SHAPE))
    assert len(tables) == 64 and {critical(t) for t in tables} == CANDIDATES
    starts = tables[:3]
    assert [critical(t) for t in starts] == [2, 3, 4]
    for table in starts:
        found, c = divisors(table, config), critical(table)
        assert len(set(found[c:])) == 1
        check_table(found, c, 8.0)
    assert len({t[-1] for t in starts}) > 1


CONFIG = build(SearchConfig, longrope2(factor=8.0))


@st.composite
def tables(draw):
    c = draw(st.sampled_from(sorted(CANDIDATES)))
    steps = draw(st.lists(st.integers(700, 1500), min_size=8 - c, max_size=8 - c))
    return (NTK,) * c + tuple(sorted(steps))


@settings(max_examples=60)
@given(tables(), tables(), st.integers(0, 1000))
def test_children_keep_to_the_recipe_and_to_their_parents_plane(one, two, seed):
    rng = np.random.default_rng(seed)
    for child in (mutation(rng, one, {}, CONFIG), crossover(rng, one, two, {}, CONFIG)):
        assert critical(child) == critical(one)
        check_table(divisors(child, CONFIG), critical(child), 8.0)


def test_evolution_finds_a_planted_table_and_its_plane():
    """The loss of a table is its distance to one that only a table of critical plane 3 can reach."""
    config = build(
        SearchConfig, longrope2(factor=8.0, population=64, parents=32, mutations=16, crossovers=16, step=0.1)
    )
    planted = np.array([1, 9 ** (1 / 3), 9 ** (2 / 3), 9, 9.5, 10, 12, 14.5])
    found, seen = first(np.random.default_rng(0), config, model(**SHAPE)), {}
    for number in range(1, 80):
        seen |= {t: float(np.abs(np.log(divisors(t, config) / planted)).sum()) for t in found}
        found = offspring(np.random.default_rng(number), best([seen], 32), seen, config)
    (table,) = best([seen], 1)
    assert critical(table) == 3
    np.testing.assert_allclose(divisors(table, config), planted, rtol=0.03)


def test_every_table_of_a_search_keeps_to_the_recipe_and_the_best_one_exports(source, tmp_path, capsys):
    found = search(longrope2(source), tmp_path)
    recorded = rows(tmp_path)
    measured = [pair for row in recorded for pair in zip(row["divisors"], row["critical"], strict=True)]
    assert len(measured) == 28 and {c for _, c in measured} == CANDIDATES
    for table, c in measured:
        check_table(table, c, 4.0)
    losses = [x for row in recorded for x in row["nll"]]
    best_divisors, c = measured[int(np.argmin(losses))]
    assert (recorded[-1]["best_divisors"], recorded[-1]["best_critical"]) == (best_divisors, c)
    assert f"critical plane {c}" in capsys.readouterr().err
    assert found.entry["long_factor"] == found.entry["short_factor"] == pytest.approx(best_divisors, rel=1e-12)
    rope = export.config_to_json(load(source, dict(positions=[found.entry])).config)["rope_parameters"]
    assert rope["long_factor"] == rope["short_factor"] == pytest.approx(best_divisors)


def test_a_killed_search_goes_on_as_if_it_had_never_stopped(source, tmp_path):
    whole = search(longrope2(source), tmp_path / "whole", quiet=True)
    search(longrope2(source, generations=1), tmp_path / "killed", quiet=True)
    assert search(longrope2(source), tmp_path / "killed", quiet=True) == whole
    once, again = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / name)]
        for name in ("whole", "killed")
    )
    assert once == again


def test_workdirs_from_before_there_were_recipes_go_on(source, tmp_path):
    found = search(values(source, generations=0), tmp_path, quiet=True)
    assert "recipe" not in json.loads((tmp_path / "config.json").read_text())
    assert set(rows(tmp_path)[0]) == {
        "generation", "best", "best_divisors", "tables", "seconds", "nll", "divisors",
    }  # fmt: skip
    assert search(values(source, generations=0), tmp_path, quiet=True) == found
    with pytest.raises(ConfigError, match="holds another run: config.recipe was None, now 'longrope2'"):
        search(values(source, recipe="longrope2"), tmp_path, quiet=True)
    assert (tmp_path / ROWS).is_file()


def test_mixed_reads_each_document_of_a_row_by_its_own_length():
    """As the paper trains: plain up to the trained length, the searched table and its gain beyond it."""
    factors = [1.0, 2.0, 4.0, 4.0, 4.5, 5.0, 6.0, 8.0]
    entry = dict(name="longrope", short_factor=factors, long_factor=factors, factor=4.0, attention_factor=1.25)
    lengths = (256, 257, 30)  # of a row's documents
    positions = jnp.concatenate([jnp.arange(n, dtype=jnp.float32) for n in lengths])[None]
    e = bind([dict(name="mixed", choices=[[], [entry]])], **SHAPE).at(positions)
    plain = 10000.0 ** (-np.arange(8) / 8)
    for start, n in zip(np.cumsum((0, *lengths)), lengths, strict=False):
        long = n > 256
        want = plain / factors if long else plain
        np.testing.assert_allclose(e.inv_freq[0, start : start + n], np.tile(want, (n, 1)), rtol=2e-7)
        np.testing.assert_allclose(e.gain[0, start : start + n], 1.25 if long else 1.0)
    for length, divisor in ((256, np.ones(8)), (257, factors)):  # a generation that ends there
        got, _ = frequencies([dict(name="mixed", choices=[[], [entry]])], length=length, **SHAPE)
        np.testing.assert_allclose(got, plain / divisor, rtol=2e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(recipe="longrope3"), "recipe"),
        (dict(starts=[[dict(name="yarn", factor=4.0)]]), "config.starts: longrope2 makes its own first tables"),
        (dict(step=10.0), "config.step: no divisor from 4 to 8 is 1 plus a multiple of 10"),
    ],
)
def test_wrong_requests(changes, message):
    with pytest.raises(ConfigError) as error:
        build(SearchConfig, longrope2("model") | changes)
    assert message in str(error.value)
