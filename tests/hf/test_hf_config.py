"""config.json in and out: both rope schemas, and everything that is not a plain Llama refused by name."""

import pytest
from hf_models import CONFIG

from giraffe_jax.config import ConfigError, to_dict
from giraffe_jax.hf import config_from_json, config_to_json
from tests.close import close

FACTORS = [1.0, 1.5, 2.0, 4.0]
SCALINGS = {
    "linear": ({"factor": 4.0}, 64, [dict(name="linear", factor=4.0)]),
    "dynamic": ({"factor": 2.0}, 64, [dict(name="dynamic", factor=2.0)]),
    "llama3": (
        dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
        16,
        [dict(name="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)],
    ),
    "yarn": (
        dict(factor=4.0, original_max_position_embeddings=16, beta_fast=16, truncate=False, attention_factor=1.1),
        16,
        [dict(name="yarn", factor=4.0, beta_fast=16, truncate=False, attention_factor=1.1)],
    ),
    "longrope": (
        dict(short_factor=[1.0] * 4, long_factor=FACTORS, original_max_position_embeddings=16),
        16,
        [dict(name="longrope", short_factor=[1.0] * 4, long_factor=FACTORS, factor=4.0)],
    ),
}


def without(*keys):
    return {k: v for k, v in CONFIG.items() if k not in keys}


def test_plain():
    c = config_from_json(CONFIG)
    assert (c.vocab_size, c.d_model, c.d_mlp, c.num_layers, c.num_heads, c.num_kv_heads) == (96, 32, 48, 3, 4, 2)
    assert (c.head_dim, c.theta, c.original_len, c.norm_eps, c.tie_embeddings) == (8, 1e4, 64, 1e-5, False)
    assert c.positions == ()


def test_defaults_are_those_of_transformers():
    absent = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings")
    c = config_from_json(without(*absent))
    assert (c.num_kv_heads, c.norm_eps, c.theta, c.original_len, c.tie_embeddings) == (4, 1e-6, 1e4, 2048, False)


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("schema", ["rope_scaling", "type", "rope_parameters", "both"])
def test_scalings_in_every_schema(kind, schema):
    scaling, original, expected = SCALINGS[kind]
    four = dict(rope_theta=5e5, rope_scaling={"rope_type": kind, **scaling})
    values = {
        "rope_scaling": CONFIG | four,
        "type": CONFIG | dict(rope_theta=5e5, rope_scaling={"type": kind, **scaling}),
        "rope_parameters": without("rope_theta")
        | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **scaling}},
        "both": CONFIG | four | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **scaling}},
    }[schema]
    c = config_from_json(values)
    assert (c.theta, c.original_len) == (5e5, original)
    assert to_dict(c.positions) == expected


def test_schemas_that_disagree_are_refused():
    both = dict(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "linear", "factor": 4.0})
    with pytest.raises(ConfigError, match=r"rope_parameters and rope_scaling with rope_theta disagree.*4\.0.*2\.0"):
        config_from_json(CONFIG | both)
    with pytest.raises(ConfigError, match=r"disagree"):
        config_from_json(CONFIG | dict(rope_scaling=None, rope_parameters={"rope_type": "linear", "factor": 4.0}))
    with pytest.raises(ConfigError, match=r"rope_theta is 10000\.0 and 500000\.0 in rope_parameters"):
        config_from_json(CONFIG | dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    twice = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    with pytest.raises(ConfigError, match=r"original_max_position_embeddings is 16 here and 32 outside"):
        config_from_json(CONFIG | dict(rope_scaling=twice, original_max_position_embeddings=32))


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(model_type="qwen2"), r"model_type is 'qwen2': not a Llama"),
        (dict(model_type=None), r"model_type is None: not a Llama"),
        (dict(hidden_act="gelu"), r"hidden_act is 'gelu', allowed is 'silu' or 'swish'"),
        (dict(attention_bias=True), r"attention_bias is True.*no biases"),
        (dict(mlp_bias=True), r"mlp_bias is True.*no biases"),
        (dict(partial_rotary_factor=0.5), r"partial_rotary_factor is 0\.5"),
        (dict(sliding_window=4096), r"sliding_window is 4096"),
        (dict(quantization_config={"bits": 4}), r"quantization_config is .*float checkpoint"),
        (dict(layer_types=["full_attention", "sliding_attention"]), r"layer_types is "),
        (dict(num_key_value_head=2), r"unknown attribute 'num_key_value_head' = 2.*Did you mean 'num_key_value_heads'"),
        (dict(rope_scaling={"rope_type": "mrope"}), r"rope_type 'mrope' is not known; known are default, linear"),
        (dict(rope_scaling={"rope_type": "linear"}), r"rope scaling of type 'linear' is missing \['factor'\]"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0, "mystery": 1}), r"\(linear\): unknown \['mystery'\]"),
        (dict(rope_scaling={"type": "linear", "rope_type": "yarn"}), r"rope_type is 'yarn' and type is 'linear'"),
        (dict(rope_parameters={"full_attention": {"rope_type": "default"}}), r"one flat set of parameters"),
        (
            dict(rope_scaling={"type": "linear", "factor": "2"}),
            r"config\.json: model\.positions\[0\] \(linear\).factor: expected float, got '2'",
        ),
        (dict(vocab_size="96"), r"vocab_size: expected int, got '96'"),
        (dict(num_attention_heads=5), r"hidden_size 32 is not a multiple of num_attention_heads 5"),
        (dict(num_key_value_heads=3), r"config\.json: model\.num_kv_heads 3 does not divide"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_json(CONFIG | change)


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match=r"x/config\.json: missing \['hidden_size'\]"):
        config_from_json(without("hidden_size"), "x/config.json")
    with pytest.raises(ConfigError, match=r"missing \['sliding_window'\]"):  # absent means 4096 there
        config_from_json(CONFIG | dict(model_type="mistral"))
    assert config_from_json(CONFIG | dict(model_type="mistral", sliding_window=None)).d_model == 32


@pytest.mark.parametrize("kind", [None, *SCALINGS])
def test_out_and_in_again(kind):
    change = {} if kind is None else dict(rope_theta=5e5, rope_scaling={"rope_type": kind, **SCALINGS[kind][0]})
    c = config_from_json(CONFIG | change)
    values = config_to_json(c)
    assert values["rope_parameters"]["rope_theta"] == values["rope_theta"] == c.theta
    again = config_from_json(values)
    if kind == "longrope":  # the gain is written as a number, since transformers would derive another one
        ours, theirs = to_dict(c.positions)[0], to_dict(again.positions)[0]
        assert theirs.pop("attention_factor") == pytest.approx(float(c.bind(64).gain))
        assert ours == theirs
    else:
        assert again == c


def test_ntk_is_a_larger_base_and_other_methods_are_refused():
    c = config_from_json(CONFIG, positions=[dict(name="ntk", factor=4.0)])
    values = config_to_json(c)
    assert values["rope_theta"] == pytest.approx(1e4 * 4 ** (8 / 6))
    assert values["rope_scaling"] is None and values["max_position_embeddings"] == 256
    with pytest.raises(ConfigError, match=r"logn cannot be exported: Hugging Face's Llama knows frequencies"):
        config_to_json(config_from_json(CONFIG, positions=[dict(name="logn")]))
    two = [dict(name="linear", factor=2.0), dict(name="yarn", factor=2.0)]
    rope = config_to_json(config_from_json(CONFIG, positions=two))["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["short_factor"] == rope["long_factor"]
    close(rope["short_factor"][0], 2.0)
