"""A method with parameters of its own in one file outside the package: docs/encoding.md's example, and mistakes."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import giraffe_jax
from giraffe_jax import hf
from giraffe_jax.config import ConfigError
from giraffe_jax.inference import generate
from giraffe_jax.loading import load
from giraffe_jax.model import Llama, ModelConfig, init_params, learned_by
from giraffe_jax.model.config import PARAM_AXES
from giraffe_jax.positions import bind, needs_raw_keys
from giraffe_jax.positions.slot import TAKEN
from giraffe_jax.sharding import paths
from giraffe_jax.training.loop import train
from tests.close import close
from tests.forward import full_logits, greedy

PAGE = (Path(__file__).parents[2] / "docs" / "encoding.md").read_text(encoding="utf-8")
EXAMPLE = next(text for text in re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL) if "learn(" in text)
RATE = "layers/attention/sharpness/rate"
MODEL: dict[str, Any] = dict(
    vocab_size=258, d_model=16, d_mlp=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, original_len=64,
    attention="dense",
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(7), (1, 40), 0, 258)


@pytest.fixture
def sharper(tmp_path, monkeypatch):
    """The config's entry of the documented method, in a file of a folder of its own."""
    (tmp_path / "idea").mkdir()
    (tmp_path / "idea" / "own_sharper.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "idea")
    yield dict(name="own_sharper.sharper", reach=8.0)
    sys.modules.pop("own_sharper", None)


def config(*positions, **changes):
    return ModelConfig(**MODEL | dict(positions=positions) | changes)


def with_rates(params, rates):
    """The parameters with other rates, [L N], and larger queries, so that attention is not nearly uniform."""
    attention = params["layers"]["attention"]
    q = {"kernel": 8 * attention["q"]["kernel"]}
    attention = attention | {"q": q, "sharpness": {"rate": jnp.asarray(rates, jnp.float32)}}
    return params | {"layers": params["layers"] | {"attention": attention}}


def test_each_layer_s_rates_multiply_its_logits_as_the_page_says(sharper):
    """Against queries scaled before the layers, in float64; with one head a layer, that is all there is."""
    own, plain = (config(*method, num_heads=1) for method in ([sharper], []))
    at = jnp.arange(40.0)[None]
    rates = np.array([[0.7], [-0.4]])
    params = with_rates(init_params(own, jax.random.key(0)), rates)
    scale = 1 + rates[:, None] * np.log1p(np.arange(40) / 8.0)
    scaled = plain.bind().at(at).replace(query_scale=jnp.asarray(scale, jnp.float32))

    def run(model, e):
        return jax.jit(lambda e: Llama(model).apply({"params": params}, TOKENS, e)[0])(e)

    want = run(plain, scaled)
    close(run(own, own.bind().at(at)), want, ulps=256)
    assert np.abs(np.asarray(run(plain, plain.bind().at(at)) - want)).max() > 1e-2
    blockwise = dataclasses.replace(own, attention="blockwise", block_size=16)
    close(run(blockwise, own.bind().at(at)), want, ulps=256)


def test_the_gradient_of_its_parameters_is_the_finite_difference(sharper):
    model = config(sharper)
    params, e = init_params(model, jax.random.key(0)), model.bind().at(jnp.arange(40.0)[None])
    rates = jnp.array([[0.3, -0.2], [0.1, 0.4]])

    @jax.jit
    def loss(rates):
        hidden, _ = Llama(model).apply({"params": with_rates(params, rates)}, TOKENS, e)
        return jnp.sum(hidden * jnp.cos(jnp.arange(40 * 16.0)).reshape(1, 40, 16))

    gradient, step = jax.jit(jax.grad(loss))(rates), 5e-3
    assert np.abs(gradient).min() > 0.05
    for where in np.ndindex(2, 2):
        bump = jnp.zeros((2, 2)).at[where].set(step)
        np.testing.assert_allclose(gradient[where], (loss(rates + bump) - loss(rates - bump)) / (2 * step), rtol=2e-2)


def test_it_is_trained_saved_generated_with_and_refused_by_an_export_that_says_what_to_do(sharper, tmp_path, tokenizer):
    data = dict(seq_len=128, batch_size=8, sources=[dict(kind="synthetic", synthetic=dict(min_len=120))])
    settings = dict(data=data, steps=2, optim=dict(lr=1e-1, warmup_steps=0))
    model = MODEL | dict(positions=[dict(name="linear", factor=2.0), sharper])
    trained = train(settings | dict(tokenizer=tokenizer, model=model), tmp_path / "fresh", quiet=True)
    rate = np.asarray(paths(trained.params)[RATE])
    assert rate.shape == (2, 2) and np.abs(rate).min() > 1e-3, "it starts at 0"
    assert (tmp_path / "fresh" / "methods" / "own_sharper.py").read_text() == EXAMPLE

    loaded = load(str(tmp_path / "fresh"))
    np.testing.assert_array_equal(paths(loaded.params)[RATE], rate)
    e = loaded.config.bind(48)
    tokens = [int(t) for t in TOKENS[0, :8]]
    want = full_logits(dataclasses.replace(loaded, params=jax.device_get(trained.params)), tokens, e)
    np.testing.assert_array_equal(full_logits(loaded, tokens, e), want)
    assert not needs_raw_keys(e)
    steep = dataclasses.replace(loaded, params=with_rates(loaded.params, [[0.8, -0.5], [0.3, 1.5]]))
    expected = greedy(steep, tokens, 8, e)
    (found,) = generate(steep, [tokens], len(expected), e, stop=[])
    assert found == expected
    assert np.abs(full_logits(steep, tokens, steep.config.bind(48, scaling=model["positions"][:1])) - want).max() > 1e-3

    with pytest.raises(
        ConfigError, match=rf"own_sharper\.sharper cannot be exported: .*own_sharper\.sharper \({RATE}\)"
    ) as e:
        hf.save(loaded.params, loaded.config, loaded.tokenizer, tmp_path / "refused")
    assert "(source) with model.positions without own_sharper.sharper." in str(e.value)
    assert not (tmp_path / "refused").exists()
    plain = load(str(tmp_path / "fresh"), dict(positions=model["positions"][:1]))
    assert RATE not in paths(plain.params)
    hf.save(plain.params, plain.config, plain.tokenizer, tmp_path / "plain", dtype="float32")

    model = dict(attention="dense", positions=model["positions"])
    taken_up = train(settings | dict(source=str(tmp_path / "plain"), model=model), tmp_path / "on", quiet=True)
    rate = np.asarray(paths(taken_up.params)[RATE])
    assert rate.shape == (2, 2) and np.abs(rate).min() > 1e-3, "fresh ones beside weights that have none"


ITEM = """
import dataclasses, jax, jax.numpy as jnp
from giraffe_jax.positions import Encoding, learn, scale_heads
from giraffe_jax.positions.biases import add_bias

@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Item:
    name = "item"
    def init(self, key, num_heads):
        return {"a": jnp.zeros(num_heads)}
    def apply(self, e, params):
        return scale_heads(e, params["a"])

def f(e: Encoding) -> Encoding:
    return learn(e, Item())
"""
LINES = {line: number for number, line in enumerate(ITEM.splitlines(), 1)}
METHOD_LINE, LEARN_LINE = LINES["def f(e: Encoding) -> Encoding:"], LINES["    return learn(e, Item())"]
TWO = "learn(learn(e, Item()), Item())"
MISTAKES = {
    "no name": ('    name = "item"\n', "", LEARN_LINE - 1, "Item learns, but its name is None; a name such as"),
    "a name of attention's": ('"item"', '"q"', LEARN_LINE, r"Item is named 'q', as parameters of attention are"),
    "twice": ("learn(e, Item())", TWO, LEARN_LINE, "item is there already, and both would own the same parameters"),
    "past learn": ("learn(e, Item())", "e.replace(learned=(Item(), Item()))", METHOD_LINE, "item is there already"),
    "no init": ("def init", "def start", LEARN_LINE, r"Item \('item'\) has no init; what learns has a name, init\("),
    "no apply": ("def apply", "def change", LEARN_LINE, r"Item \('item'\) has no apply"),
    "no pytree": ("@jax.tree_util.register_static\n", "", LEARN_LINE - 1, "is not a pytree .*register_static and"),
    "never equal": ("@dataclasses.dataclass(frozen=True)\n", "", LEARN_LINE - 1, "is not a pytree equal to its copies"),
    "a list": ('{"a": jnp.zeros(num_heads)}', "[jnp.zeros(2)]", METHOD_LINE, r"Item \('item'\): init returned list; a"),
    "nothing": ('{"a": jnp.zeros(num_heads)}', "{}", METHOD_LINE, r"Item \('item'\): init returned nothing"),
    "whole numbers": ("jnp.zeros(num_heads)", "jnp.arange(num_heads)", METHOD_LINE, "init returned a of int32; arrays"),
    "a number": ("jnp.zeros(num_heads)", "0.5", METHOD_LINE, "init returned a of float; arrays of floats"),
    "a kernel": ('{"a"', '{"kernel"', METHOD_LINE, "init names a parameter 'kernel', kept for matrices and adapters"),
    "a wrong shape": (
        "zeros(num_heads)", "zeros(num_heads + 1)", METHOD_LINE,
        r"apply returned head_scale of shape \(3,\); expected \[B T N\] = \(1, 2, 2\)",
    ),
    "another field": (
        'scale_heads(e, params["a"])', 'e.replace(gain=e.gain * params["a"][0])', METHOD_LINE,
        "apply changed gain, which is used before the layers; it may change head_scale and bias",
    ),
    "no encoding": ('scale_heads(e, params["a"])', "None", METHOD_LINE, "apply returned NoneType; it ends in"),
    "init fails": ("jnp.zeros(num_heads)", "1 / 0", LINES['        return {"a": jnp.zeros(num_heads)}'], "ZeroDiv"),
    "apply fails": ('params["a"]', 'params["b"]', LINES['        return scale_heads(e, params["a"])'], "KeyError: 'b'"),
    "a bias of a wrong shape": (
        'scale_heads(e, params["a"])', 'e.replace(bias=lambda i, j, n: params["a"])', METHOD_LINE,
        r"with parameters of item, bias\(i, j, num_heads\) is of shape \(2,\); expected \[B N T S\] = \(1, 2, 2, 3\)",
    ),
}  # fmt: skip


TERM = """
import dataclasses, jax.numpy as jnp
from giraffe_jax.positions import Encoding
from giraffe_jax.positions.biases import add_bias

@dataclasses.dataclass(frozen=True)
class Slopes:
    name = "slopes"
    by_distance = True
    def init(self, key, num_heads):
        return {"slope": jnp.zeros(num_heads)}
    def __call__(self, params, i, j, num_heads):
        return -params["slope"][:, None, None] * (i - j)

def f(e: Encoding) -> Encoding:
    return add_bias(e, Slopes())
"""


def test_a_learned_bias_in_a_file_of_its_own_is_alibi_where_its_slopes_are(tmp_path, monkeypatch):
    (tmp_path / "own_slopes.py").write_text(TERM)
    monkeypatch.syspath_prepend(tmp_path)
    own, alibi = (config(dict(name="t5"), dict(name=name)) for name in ("own_slopes.f", "alibi"))
    params = init_params(own, jax.random.key(0))
    assert not np.any(paths(params)["layers/attention/slopes/slope"])
    params["layers"]["attention"]["slopes"]["slope"] = jnp.tile(jnp.array([2.0**-4, 2.0**-8]), (2, 1))
    got, want = (
        Llama(model).apply({"params": params}, TOKENS, model.bind().at(jnp.arange(40.0)[None]))[0]
        for model in (own, alibi)
    )
    close(got, want, ulps=256)


def refusal(tmp_path, monkeypatch, text, module, *after):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        config(dict(name=f"{module}.f"), *after)
    return str(error.value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_item_that_is_none_is_refused_by_name_and_line(tmp_path, monkeypatch, mistake):
    old, new, line, said = MISTAKES[mistake]
    module = f"own_item{list(MISTAKES).index(mistake)}"
    assert ITEM.count(old) == 1
    found = refusal(tmp_path, monkeypatch, ITEM.replace(old, new), module)
    assert re.search(said, found), found
    assert found.startswith(f"model.positions[0] ({module}.f): {tmp_path}/{module}.py:{line}: "), found


@pytest.mark.parametrize("name", ["ssmax", "t5"])
def test_a_name_of_the_catalogue_s_is_refused_before_and_after_it(tmp_path, monkeypatch, name):
    text = ITEM.replace('"item"', f'"{name}"')
    found = refusal(tmp_path, monkeypatch, text, f"own_{name}", dict(name=name))
    assert re.match(rf"model\.positions\[\d\] .*: .*{name} is there already", found), found
    with pytest.raises(ConfigError, match=rf"model\.positions\[\d\] .*{name} is there already"):
        config(dict(name=name), dict(name=f"own_{name}.f"))


def test_two_bindings_are_one_program(sharper):
    """Numbers of an item are arguments, like those of methods."""
    first, second = (config(sharper | dict(reach=reach)).bind() for reach in (8.0, 16.0))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert [float(e.learned[0].reach) for e in (first, second)] == [8.0, 16.0]


def test_the_names_that_are_taken_are_those_of_attention():
    own = {path.split("/")[2] for path in PARAM_AXES if path.startswith("layers/attention/")}
    assert own | {"lora"} == set(TAKEN)


def test_what_each_method_learns_has_its_place():
    found = learned_by(config(dict(name="yarn", factor=2.0), dict(name="ssmax"), dict(name="t5")))
    assert found == {"ssmax": ["layers/attention/ssmax/scale"], "t5": ["layers/attention/t5/table"]}


def test_no_method_that_learns_is_named_by_what_runs_it():
    root = Path(str(giraffe_jax.__file__)).parent
    files = [*root.glob("model/*.py"), *root.glob("training/*.py"), root / "loading.py"]
    assert len(files) > 10
    for file in files:
        words = re.findall(r"ssmax|log_n\b|with_params|\bfire\b|kerple|\bt5\b", file.read_text(encoding="utf-8"), re.I)
        assert not words, file


def test_without_the_number_of_heads_shapes_are_not_tried(tmp_path, monkeypatch):
    (tmp_path / "own_untried.py").write_text(ITEM.replace("zeros(num_heads)", "zeros(num_heads + 1)"))
    monkeypatch.syspath_prepend(tmp_path)
    assert bind([dict(name="own_untried.f")], head_dim=8, theta=1e4, original_len=64).learned[0].name == "item"
