"""The base configs: each is a model the library builds, of the size that was published."""

import runpy
from pathlib import Path

import pytest

from configs import evaluation, models, ruler
from giraffe_jax import config
from giraffe_jax.model import ModelConfig, num_params

ROOT = Path(__file__).parent.parent

# Parameters of the checkpoints on the Hugging Face hub, as their safetensors metadata counts them.
PUBLISHED = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
}
NAMES = [name for name, value in vars(models).items() if not name.startswith("_") and name not in ("llama", "Any")]
NAMES = [name for name in NAMES if getattr(models, name).__module__ == models.__name__]


@pytest.mark.parametrize("name", NAMES)
def test_model_is_of_the_published_size(name):
    built = config.build(ModelConfig, getattr(models, name)(), f"models.{name}")
    if name in PUBLISHED:
        assert num_params(built) == PUBLISHED[name]
    else:
        assert name == "giraffe_mini" and num_params(built) < 1_000_000


def test_every_published_size_is_of_a_config():
    assert set(PUBLISHED) <= set(NAMES)


def test_giraffe_mini_is_what_its_experiment_trains():
    trained = runpy.run_path(str(ROOT / "experiments" / "mini" / "config.py"))["architecture"]()
    assert config.build(ModelConfig, models.giraffe_mini()) == config.build(ModelConfig, trained)


def test_the_evaluation_config_is_an_experiment():
    from giraffe_jax import config
    from giraffe_jax.cli.evaluate import as_experiment
    from giraffe_jax.lab import spec

    for argument in ("giraffe-mini", f"giraffe-mini,{ROOT / 'README.md'}"):
        values = as_experiment({**evaluation.get_config(argument), "positions": []})
        built = config.build(spec.ExperimentConfig, values)
        assert len(spec.check(built)) == argument.count(",") + 2


def test_the_tpu_config_trains_a_small_llama_on_eight_devices(tmp_path):
    import jax

    from giraffe_jax.training.loop import losses, train
    from tests.cli.test_cli import tiny_hf_directory

    source = tiny_hf_directory(tmp_path / "hf", num_layers=1, original_len=64)
    (tmp_path / "book.jsonl").write_text('{"text": "' + "all work and no play " * 200 + '"}\n')
    changes = ["steps=2", "save_every=2", "data.seq_len=64", "data.batch_size=8"]
    changes += ["model.attention=blockwise", "model.block_size=16"]
    changes += [f"data.sources[0].path={tmp_path / 'book.jsonl'}", "data.sources[0].kind=jsonl"]
    path = f"{ROOT / 'configs' / 'llama2_7b_32k_tpu.py'}:{source}"
    values = config.load(path, [f"--config.{change}" for change in changes])
    assert values.mesh.fsdp == -1
    trained = train(values, tmp_path / "run", quiet=True)
    kernel = trained.params["layers"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.sharding.is_fully_replicated
    assert kernel.dtype == jax.numpy.float32
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2]


def test_rulers_config_asks_what_it_has_files_for(tmp_path):
    from giraffe_jax import config
    from giraffe_jax.cli.evaluate import as_experiment
    from giraffe_jax.lab import spec

    book, questions = tmp_path / "a.txt", tmp_path / "q.json"
    for path in (book, questions):
        path.write_text("One. Two.")
    for argument, kinds in (("x", 6), (f"x,{book}", 11), (f"x,{book},{questions},{questions}", 13)):
        built = config.build(spec.ExperimentConfig, as_experiment({**ruler.get_config(argument), "positions": []}))
        assert len({task.kind for task in spec.check(built)}) == kinds
