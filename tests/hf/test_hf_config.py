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
        dict(short_factor=[1.0] * 4, long_factor=FACTORS),
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
    top = {}
    if kind == "longrope":  # as transformers 4 reads it and as 5 does
        scaling = scaling | dict(original_max_position_embeddings=original)
        top = dict(original_max_position_embeddings=original)
    four = dict(rope_theta=5e5, rope_scaling={"rope_type": kind, **scaling})
    values = {
        "rope_scaling": CONFIG | four,
        "type": CONFIG | dict(rope_theta=5e5, rope_scaling={"type": kind, **scaling}),
        "rope_parameters": without("rope_theta")
        | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **scaling}},
        "both": CONFIG | four | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **scaling}},
    }[schema]
    c = config_from_json(values | top)
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
        (dict(vocab_size="96"), r"vocab_size must be a positive whole number, got '96'"),
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
    if kind == "longrope":
        change["rope_scaling"] |= dict(original_max_position_embeddings=16)
        change["original_max_position_embeddings"] = 16
    c = config_from_json(CONFIG | change)
    values = config_to_json(c)
    assert values["rope_parameters"]["rope_theta"] == values["rope_theta"] == c.theta
    again = config_from_json(values)
    # where transformers 4 looks for longrope's; of every other type it reads rope_scaling's
    assert values.get("original_max_position_embeddings") == (16 if kind == "longrope" else None)
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
    with pytest.raises(ConfigError, match=r"logn cannot be exported: .* Nearest to logn: scale, at one length\."):
        config_to_json(config_from_json(CONFIG, positions=[dict(name="logn")]))
    two = [dict(name="linear", factor=2.0), dict(name="yarn", factor=2.0)]
    rope = config_to_json(config_from_json(CONFIG, positions=two))["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["short_factor"] == rope["long_factor"]
    close(rope["short_factor"][0], 2.0)


LONGROPE = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=FACTORS, factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0)
TWO, INSIDE, OUTSIDE = (
    dict(factor=2.0),
    dict(original_max_position_embeddings=16),
    dict(original_max_position_embeddings=32),
)


@pytest.mark.parametrize(
    "change,original,message",
    [
        (dict(rope_scaling=LONGROPE | INSIDE), 16, "is 16 inside .* transformers 4 reads 64, transformers 5 reads 16"),
        (
            OUTSIDE | dict(rope_scaling=LONGROPE | TWO),
            32,
            "is 32 outside .* 4 reads 32, transformers 5 reads 64, and 32",
        ),
        (OUTSIDE | dict(rope_scaling=YARN), 32, "for yarn transformers 4 reads 64, transformers 5 reads 64, and 32"),
        (INSIDE | dict(rope_scaling=LONGROPE | INSIDE | TWO), 16, "factor is 2.0, .* transformers 4 takes .* = 4"),
    ],
)
@pytest.mark.parametrize("version", ["4.57.1", None])
def test_files_that_transformers_4_and_5_read_as_different_models_are_warned_of(change, original, message, version):
    with pytest.warns(UserWarning, match=message):
        c = config_from_json(CONFIG | change | dict(transformers_version=version))
    assert c.original_len == original


@pytest.mark.parametrize(
    "change",
    [
        dict(rope_scaling=LONGROPE | INSIDE, transformers_version="5.2.0"),  # whose reading it is
        dict(rope_parameters=LONGROPE | INSIDE),  # a key of transformers 5
        INSIDE | dict(rope_scaling=LONGROPE | INSIDE, transformers_version="4.57.1"),
        dict(rope_scaling=YARN | INSIDE, transformers_version="4.57.1"),
        dict(rope_scaling=LONGROPE | INSIDE | dict(long_factor=[1.0] * 4, attention_factor=1.0)),  # a table: no switch
    ],
)
def test_files_that_both_versions_read_alike_give_no_warning(change):
    assert config_from_json(CONFIG | change).original_len == 16  # any warning is an error here


def rope(base, **changes):
    return dict(rope_parameters=base | INSIDE | changes)


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(hidden_size=2**29), r"model\.head_dim must be at most 65536, got 134217728"),
        (dict(head_dim=2**29), r"model\.head_dim must be at most 65536, got 536870912"),
        (dict(num_hidden_layers=2**29), r"model\.num_layers must be at most 65536, got 536870912"),
        (dict(vocab_size=2**40), r"model\.vocab_size must be at most 2147483647"),
        (dict(max_position_embeddings=10**12), r"model\.original_len must be at most 2147483647"),
        (dict(hidden_size=10**400), r"hidden_size must be a finite number, got 1000000"),
        (dict(num_attention_heads=True), r"num_attention_heads must be a positive whole number, got True"),
        (dict(num_key_value_heads=0), r"num_key_value_heads must be a positive whole number, got 0"),
        (dict(head_dim=0), r"head_dim must be a positive whole number, got 0"),
        (dict(max_position_embeddings="64"), r"max_position_embeddings must be a positive whole number, got '64'"),
        (dict(rope_theta=float("inf")), r"rope_theta must be a finite number, got inf"),
        (dict(rope_theta=1e300), r"model\.theta must be a positive, finite number, got 1e\+300"),
        (dict(rope_theta=[1.0], rope_parameters=dict(rope_type="default", rope_theta=1e4)), r"rope_theta is \[1\.0\]"),
        (dict(rms_norm_eps=float("nan")), r"rms_norm_eps must be a finite number, got nan"),
        (dict(rms_norm_eps=0), r"model\.norm_eps must be a positive, finite number, got 0"),
        (dict(rms_norm_eps=-1e-5), r"model\.norm_eps must be a positive"),
        (rope(YARN, factor=float("inf")), r"rope_parameters\.factor must be a finite number, got inf"),
        (rope(YARN, attention_factor=float("inf")), r"rope_parameters\.attention_factor must be a finite number"),
        (rope(YARN, beta_fast=1.0, beta_slow=32.0), r"beta_fast must be at least beta_slow, got beta_fast 1 and"),
        (rope(LONGROPE, long_factor=[1.0, 2.0, float("inf"), 3.0]), r"long_factor\[2\] must be a finite number"),
        (rope(LONGROPE, long_factor=[1.0, 2.0, 3.0]), r"long_factor must have head_dim / 2 = 4 values, got 3"),
        (rope(LONGROPE, short_factor=[[1.0] * 4] * 3), r"short_factor must be one list of numbers"),
        (rope(LONGROPE, short_factor=[[[[[1.0]]]]]), r"short_factor\[0\]\[0\]\[0\]: lists in lists"),
        (rope(LONGROPE, original_max_position_embeddings=0), r"original_max_.* must be a positive whole number, got 0"),
        (rope(LONGROPE, original_max_position_embeddings="64"), r"original_max_.* positive whole number, got '64'"),
        (rope(LONGROPE, original_max_position_embeddings=1), r"frequencies or gain of longrope are not finite"),
        (rope(dict(rope_type=["yarn"])), r"rope_type \['yarn'\] is not known; known are default, linear"),
        (rope(dict(rope_type="yran")), r"rope_type 'yran' is not known.*Did you mean 'yarn'\?"),
        (dict(rope_scaling="yarn"), r"one flat set of parameters for all layers, got 'yarn'"),
        (dict(layer_types=[["full_attention"]]), r"layer_types is \[\['full_attention'\]\]"),
        ({"\ud800": 1}, r"unknown attribute '\\ud800' = 1"),
        (dict(mystery=list(range(10**5))), r"unknown attribute 'mystery' = \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]: "),
        (
            rope(dict(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=4.0)),
            r"high_freq_factor must be more than low_freq_factor, got high_freq_factor 4 and low_freq_factor 4",
        ),
    ],
)
def test_numbers_that_no_llama_has_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        config_from_json(CONFIG | change)
    assert str(error.value).startswith("config.json") and len(str(error.value)) < 500
