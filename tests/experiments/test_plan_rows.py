"""The base configs of experiments/plan, and the peer's rows beside ours: configs that their meshes take, tables."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

from giraffe_jax.config import build
from giraffe_jax.sharding import AXES
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.dry import check_config

HERE = Path(__file__).parents[2] / "experiments" / "plan"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "run", raising=False)  # another test's module of that name
    return {name: runpy.run_path(str(HERE / f"{name}.py")) for name in ("run", "peer", "config")}


def test_every_base_config_is_one_that_its_chips_take(scripts):
    cells = scripts["run"]["cells"]()
    assert len({cell["name"] for cell in cells}) == len(cells) == 6 * 5 * 3 + 5
    for cell in cells:
        config = build(TrainConfig, scripts["config"]["get_config"](cell["about"]))
        sizes = [getattr(config.mesh, axis) for axis in AXES]
        assert math.prod(sizes) == cell["chips"] == math.prod(map(int, cell["topology"].partition(":")[2].split("x")))
        assert config.data.batch_size * config.data.seq_len == 4_194_304
        assert config.data.batch_size // config.accumulate % (config.mesh.data * config.mesh.fsdp) == 0
        per_device = config.data.batch_size * config.data.seq_len / cell["chips"] / config.accumulate
        assert per_device <= max(32_768, config.data.seq_len)


@pytest.mark.parametrize(("about", "factor"), [("llama2_7b,4096,8", None), ("llama2_7b,32768,8,lora", 8.0)])
def test_a_base_config_is_whole(scripts, about, factor):
    config, model, _ = check_config(scripts["config"]["get_config"](about))
    assert [call.get("factor") for call in model.positions] == ([] if factor is None else [factor])
    assert (config.lora is None) == (factor is None)


def test_the_peers_rows_have_their_chips(scripts):
    cells = scripts["peer"]["cells"]()
    assert len({cell["name"] for cell in cells}) == len(cells) == 16 + 3
    for cell in cells:
        asked = cell["asked"]
        assert math.prod(asked["mesh"].values()) == asked["chips"]
        assert asked["sequences"] % asked["mesh"]["fsdp"] == 0


def test_tables_of_rows(scripts):
    row = dict(fits=True, peak_bytes=2**30, needed_bytes=None, hbm_bytes=2**34, executed_flops=3.0, model_flops=2.0)
    row |= dict(collective_bytes={"all-gather": {"fsdp": 1e9, "data": 1e9}}, attention="dense, 1 band")
    row |= dict(step_seconds_bound=0.5, tokens_per_second=1000.0, compile_seconds=3.2, batch_size=8, accumulate=2)
    row |= dict(about="llama2_7b,4096,8", slice="v5p-16", chips=8, mesh=dict(data=1, fsdp=8, context=1, tensor=1))
    line = scripts["run"]["table"]([row]).splitlines()[-1]
    assert line == (
        "| llama2_7b 4,096 | v5p-16 | 8 | fsdp 8 | 8, 2 | yes | 1.00 of 16.00 | 1.500 | 0.5 | 1,000 | dense |"
    )
    peer = row | dict(name="x", peer=dict(peak_gib=2.0, executed=1.0, collective_gb={"all-gather": 8}))
    line = scripts["peer"]["table"]([peer]).splitlines()[-1]
    assert line == "| x | 1 / 2 = 0.50 | 1.5 / 1 = 1.50 | 2 / 8 = 0.25 | dense |"
    too_big = row | dict.fromkeys(("peak_bytes", "executed_flops", "step_seconds_bound", "tokens_per_second"))
    line = scripts["run"]["table"]([too_big | dict(fits=False, needed_bytes=2**35)]).splitlines()[-1]
    assert "| no | 32.00 of 16.00 |" in line and line.count("|") == 12


def test_the_readme_has_the_tables_of_the_rows(scripts):
    """What is committed is what the commands write."""
    readme = (HERE / "README.md").read_text()
    for name, file in (("run", "rows.jsonl"), ("peer", "peer.jsonl")):
        rows = [json.loads(line) for line in (HERE / file).read_text().splitlines()]
        for row in rows:
            assert scripts[name]["table"]([row]).splitlines()[-1] in readme
