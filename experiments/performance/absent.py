"""Memory of a training step on TPU chips that are not there: the compiler's peak, in GiB a chip.

    pip install 'jax[tpu]'
    python experiments/performance/absent.py experiments/giraffe/config.py:/data/Llama-13b-hf,text.jsonl \
        --variant="scale 4" --model=llama_13b --topology=v5p:2x2x2

Compiles, and does not run, the step that `giraffe train` would run (or the training of one variant of an experiment) on
a mesh of all chips of the topology. Neither weights nor text need to be there: --model names a shape of
configs/models.py. A step that does not fit is refused by the compiler, which says by how much. Minutes of one core.
"""

import argparse
import os
import time
from typing import Any

os.environ |= dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from configs import models
from giraffe_jax import config, sharding
from giraffe_jax.lab import spec
from giraffe_jax.model import ModelConfig, init_params
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import state_axes
from giraffe_jax.training.step import init_state, make_update, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="FILE", help="of a training, or of an experiment with --variant; FILE[:ARG]")
    parser.add_argument("--variant", metavar="NAME", help="of an experiment, one that is trained")
    parser.add_argument("--model", required=True, metavar="NAME", help="of configs/models.py, llama2_7b say")
    parser.add_argument("--topology", default="v5p:2x2x2", help="as jax.experimental.topologies takes it (v5p:2x2x2)")
    args = parser.parse_args()
    run = training(config.load(args.config), args.variant)
    if run.lora is not None or run.frequencies is not None:
        parser.error("only trainings of all weights are compiled here")
    model = config.build(ModelConfig, {**getattr(models, args.model)(), **run.model})
    chips = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    began = time.monotonic()
    peak = compiled_peak(run, model, chips)
    rows = f"{run.data.batch_size} x {run.data.seq_len:,} tokens"
    print(f"{args.model} on {len(chips)} chips of {args.topology}, {rows}: {peak / 2**30:.1f} GiB a chip at its peak "
          f"(compiled in {time.monotonic() - began:.0f} s)")  # fmt: skip


def training(values: Any, variant: str | None) -> TrainConfig:
    """Returns the TrainConfig of a config file, or of a variant of the experiment it is."""
    if variant is None:
        return config.build(TrainConfig, values)
    whole = config.build(spec.ExperimentConfig, values)
    (found,) = (v for v in whole.variants if v.name == variant)
    return spec.train_config(whole, found, whole.seeds[0])


def compiled_peak(run: TrainConfig, model: ModelConfig, chips: Any) -> int:
    """Returns the peak bytes of a chip in one step."""
    mesh = sharding.make_mesh(run.mesh, devices=chips)
    state = jax.eval_shape(lambda: init_state(init_params(model, jax.random.key(0)), run))
    where = sharding.shardings(state, state_axes(model), mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)
    rows, over = (
        (run.data.batch_size, run.data.seq_len),
        NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "context")),
    )
    dtypes = dict(tokens=jnp.int32, targets=jnp.int32, weights=jnp.float32, positions=jnp.float32, segments=jnp.int32)
    batch = {name: jax.ShapeDtypeStruct(rows, dtype, sharding=over) for name, dtype in dtypes.items()}
    plain = config.build(ModelConfig, {**config.to_dict(model), "positions": ()})
    update = make_update(run.optim, run.steps)
    settings: dict[str, Any] = dict(model=plain, accumulate=run.accumulate, chunk=run.loss_chunk)
    with jax.set_mesh(mesh):
        memory = train_step.lower(state, batch, model.bind(), update, **settings).compile().memory_analysis()
    assert memory is not None
    return memory.peak_memory_in_bytes


if __name__ == "__main__":
    main()
