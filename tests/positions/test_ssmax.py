import jax
import jax.numpy as jnp
import numpy as np

from giraffe_jax.model import Llama, ModelConfig
from tests.close import close

CONFIG = ModelConfig(
    vocab_size=32, d_model=16, d_mlp=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, original_len=32,
    attention="dense", positions=(dict(name="ssmax"),),
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(7), (1, 40), 0, 32)
POSITIONS = jnp.arange(40.0)[None]


def test_each_head_multiplies_its_logits_by_its_number_times_the_logarithm_of_n():
    """Against queries scaled through the rotation tables, one head at a time: the other one's output is cut off."""
    e = CONFIG.bind().at(POSITIONS)
    params = Llama(CONFIG).init(jax.random.key(0), TOKENS, e)["params"]
    attention = params["layers"]["attention"]
    start = np.asarray(attention["ssmax"]["scale"])
    close(start, np.full((1, 2), 1 / np.log(32)))
    for head, s in enumerate((0.5, 2.0)):
        scales = jnp.full((1, 2), 9.0).at[0, head].set(s)
        o = jnp.zeros_like(attention["o"]["kernel"]).at[0, head].set(attention["o"]["kernel"][0, head])
        changed = attention | {"o": {"kernel": o}, "ssmax": {"scale": scales}}
        tree = params | {"layers": params["layers"] | {"attention": changed}}
        scaled = e.replace(
            head_scale=None, learned=(), query_scale=jnp.asarray(s * np.log(np.arange(1, 41)), jnp.float32)[None]
        )
        got, want = (Llama(CONFIG).apply({"params": tree}, TOKENS, x)[0] for x in (e, scaled))
        close(got, want, ulps=256)
