"""Logits of adapters here and in transformers with peft, both ways; -s prints the largest difference of each."""

import numpy as np
import pytest
from hf_models import our_logits, random_tensors, write
from test_peft_export import SHAPE, base_of, trained

from giraffe_jax import hf
from giraffe_jax.inference import LM
from giraffe_jax.model import lora
from giraffe_jax.model.lora import LoraConfig
from tests.close import close

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # peft warns of all that is tied
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 40))
THEIRS = {
    "plain": dict(target_modules=["q_proj", "v_proj"]),
    "attention, rsLoRA": dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], use_rslora=True),
    "all-linear": dict(target_modules="all-linear"),
    "patterns": dict(
        target_modules="all-linear",
        rank_pattern={"q_proj": 5, r"layers\.[01]\.mlp\.up_proj": 1},
        alpha_pattern={r"^model\.layers\.2\.self_attn\.\w_proj": 20, "down_proj": 1.5, "proj": 100},
    ),
    "regex": dict(target_modules=r".*\.(1|2)\.self_attn\.[qo]_proj"),
    "layers": dict(target_modules=["k_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
    "one layer": dict(target_modules=["k_proj", "o_proj"], layers_to_transform=1),
    "exclude": dict(target_modules="all-linear", exclude_modules=["layers.1.self_attn.q_proj", "up_proj"]),
    "saved": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head", "norm"]),
    "saved embedding": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "kept tied": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "LoRA of the embedding": dict(target_modules=["q_proj", "embed_tokens"]),
    "LoRA of the head": dict(target_modules=["q_proj", "lm_head"]),
}


def peft_logits(base, adapter, tokens, config=None):
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    config = {} if config is None else {"config": transformers.AutoConfig.from_pretrained(config)}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", **config
    )
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, adapter).eval()(torch.tensor(tokens)).logits.numpy()


def compare(name, got, want):
    print(f"{name}: largest difference {np.abs(got - want).max():.1e} of logits to {np.abs(want).max():.1f}")
    close(got, want, ulps=1024, what=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", THEIRS)
def test_in(tmp_path, kind, tied):
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    base = write(tmp_path / "base", random_tensors(tied=tied), tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=3, lora_alpha=7, task_type="CAUSAL_LM", **THEIRS[kind])
    model = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for x in {id(x): x for x in model.parameters() if x.requires_grad}.values():
            x.add_(torch.randn_like(x) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    want = peft_logits(base, tmp_path / "adapter", TOKENS)
    assert np.abs(want - our_logits(hf.load(base), TOKENS)).max() > 0.5  # the adapter is seen
    compare(f"in, {kind}, {'tied' if tied else 'untied'}", our_logits(hf.load(tmp_path / "adapter"), TOKENS), want)


def test_beside_the_weights_as_automodel_reads_it(tmp_path):
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    base = write(tmp_path / "base", random_tensors())
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        compare("in, beside", our_logits(hf.load(base), TOKENS), model.eval()(torch.tensor(TOKENS)).logits.numpy())


@pytest.mark.parametrize("positions", [None, [dict(name="yarn", factor=4.0)]])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=3, alpha=7.0, targets=("q", "v"), train=()),
        LoraConfig(rank=2, targets=("q", "k", "v", "o", "gate", "up", "down"), train=("norm", "embed", "lm_head")),
    ],
)
def test_out(tmp_path, config, tied, positions):
    base = base_of(tmp_path, tied)
    lm, params = trained(base, config, positions)
    hf.save_adapter(params, lm.config, config, str(base), None, tmp_path / "out")
    ours = LM(lm.config, lora.merge(params), None)
    assert SHAPE["vocab_size"] > TOKENS.max()
    changed = None if positions is None else tmp_path / "out" / "base_config.json"
    want = peft_logits(base, tmp_path / "out", TOKENS, changed)
    name = f"out, rank {config.rank}, {'tied' if tied else 'untied'}, {positions or 'plain positions'}"
    compare(name, our_logits(ours, TOKENS), want)
