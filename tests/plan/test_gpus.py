"""Plans for GPUs that are not there: a program's text by hand, what crosses between nodes, and their compiler."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from giraffe_jax import devices
from giraffe_jax.attention import engine
from giraffe_jax.cli import main
from giraffe_jax.config import ConfigError, build
from giraffe_jax.model import ModelConfig
from giraffe_jax.plan import absent_chips, compiled, hlo
from giraffe_jax.plan.chips import CHIPS, GPUS, a_node
from giraffe_jax.plan.kernels import known_kernels
from giraffe_jax.positions import Band
from giraffe_jax.sharding import AXES, MeshConfig, make_mesh
from giraffe_jax.training.config import TrainConfig

MESH = dict(data=1, fsdp=4, context=1, tensor=2)

TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%gemm (p: bf16[64,32], q: bf16[32,48]) -> bf16[64,48] {
  %p = bf16[64,32]{1,0} parameter(0)
  %q = bf16[32,48]{1,0} parameter(1)
  ROOT %dot.4 = bf16[64,48]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/rematted_computation/dot_general"}, backend_config={"sizes":["16"]}
}

%scattered (p.1: f32[64]) -> f32[16] {
  %p.1 = f32[64]{0} parameter(0)
  ROOT %rs = f32[16]{0} reduce-scatter(%p.1), channel_id=3, replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
}

%by_cudnn (t: (bf16[2,16,4,8], bf16[2,16,2,8])) -> bf16[2,4,16,8] {
  %t = (bf16[2,16,4,8]{3,2,1,0}, bf16[2,16,2,8]{3,2,1,0}) parameter(0)
  %q.2 = bf16[2,16,4,8]{3,2,1,0} get-tuple-element(%t), index=0
  %k.2 = bf16[2,16,2,8]{3,2,1,0} get-tuple-element(%t), index=1
  %fmha.1 = (bf16[2,4,16,8]{3,1,2,0}, f32[2,4,16]{2,1,0}, u8[0]{0}) custom-call(%q.2, %k.2, %k.2), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": \
{"element_type": "BF16", "dimensions": ["2", "4", "16", "16"], "tuple_shapes": []}, "mask_type": "CAUSAL"}}
  ROOT %o = bf16[2,4,16,8]{3,1,2,0} get-tuple-element(%fmha.1), index=0
}

%by_pallas (t.1: (bf16[2,16,4,8], bf16[2,16,2,8])) -> bf16[2,4,16,8] {
  %t.1 = (bf16[2,16,4,8]{3,2,1,0}, bf16[2,16,2,8]{3,2,1,0}) parameter(0)
  %q.3 = bf16[2,16,4,8]{3,2,1,0} get-tuple-element(%t.1), index=0
  ROOT %pallas_call.14 = bf16[2,4,16,8]{3,2,1,0} custom-call(%q.3), custom_call_target="__gpu$xla.gpu.triton", \
metadata={op_name="jit(f)/cond/branch_0_fun/attention/pallas_call"}, backend_config={grid_x = 8 : i32, ir = "ML\\EFR"}
}

ENTRY %main (x: bf16[64,32], w: bf16[8,48], g: f32[64], one: pred[]) -> bf16[64,48] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[8,48]{1,0} parameter(1)
  %g = f32[64]{0} parameter(2)
  %one = pred[] parameter(3)
  %ag = (bf16[8,48]{1,0}, bf16[32,48]{1,0}) all-gather-start(%w), channel_id=1, \
replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}, use_global_device_ids=true
  %all = bf16[32,48]{1,0} all-gather-done(%ag)
  %rs-start = ((f32[64]{0}), f32[16]{0}) async-start(%g), calls=%scattered
  %first = bf16[64,48]{1,0} fusion(%x, %all), kind=kCustom, calls=%gemm, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %rs-done = f32[16]{0} async-done(%rs-start)
  %second = (bf16[64,48]{1,0}, s8[4194304]{0}) custom-call(%x, %all), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %a = bf16[2,16,4,8]{3,2,1,0} bitcast(%x)
  %b = bf16[2,16,2,8]{3,2,1,0} bitcast(%x)
  %pair = (bf16[2,16,4,8]{3,2,1,0}, bf16[2,16,2,8]{3,2,1,0}) tuple(%a, %b)
  %att = bf16[2,4,16,8]{3,1,2,0} conditional(%one, %pair, %pair), true_computation=%by_cudnn, \
false_computation=%by_pallas
  ROOT %out = bf16[64,48]{1,0} get-tuple-element(%second), index=0
}
"""
PRODUCT = 2 * 64 * 32 * 48
ATTENTION = 2 * 2 * (2 * 4) * sum(range(1, 17)) * 8  # two products of a head's width for each pair that is seen


def test_a_gpus_program():
    """A product by Triton and one by cuBLAS; a gather and a scatter that go on beside them; attention by cuDNN."""
    found = hlo.count(TEXT, MESH, kernels=dict(attention=0.0))
    assert found.flops == 2 * PRODUCT + ATTENTION and found.recomputed == PRODUCT
    assert found.collectives == {("all-gather", "fsdp"): 8 * 48 * 2, ("reduce-scatter", "fsdp"): 64 * 4}
    assert found.sent == 3 * 8 * 48 * 2 + 3 / 4 * 64 * 4
    assert found.uncounted == () and found.data_loops == 0


def test_the_branch_that_runs_is_counted_and_a_kernel_of_no_known_work_is_named():
    packed = hlo.count(TEXT, MESH, kernels={"__cudnn$fmhaSoftmax": 0.0, "attention": 7.0})
    assert packed.flops == 2 * PRODUCT + 7
    alone = TEXT.replace("true_computation=%by_cudnn", "true_computation=%by_pallas")
    assert hlo.count(alone, MESH).uncounted == ("pallas_call.14",)


def test_the_backward_pass_of_cudnns_attention_has_five_products():
    text = TEXT.replace("fmhaSoftmax", "fmhaSoftmaxBackward")
    assert hlo.count(text, MESH, kernels=dict(attention=0.0)).flops == 2 * PRODUCT + ATTENTION / 2 * 5
    whole = TEXT.replace('"mask_type": "CAUSAL"', '"mask_type": "NO_MASK"')
    pairs = 2 * 2 * (2 * 4) * 16 * 16 * 8
    assert hlo.count(whole, MESH, kernels=dict(attention=0.0)).flops == 2 * PRODUCT + pairs


def collective(kind, operands, groups):
    return f"""HloModule m

ENTRY %main (a: f32[{operands}]) -> f32[8] {{
  %a = f32[{operands}]{{0}} parameter(0)
  ROOT %c = f32[8]{{0}} {kind}(%a), channel_id=1, {groups}
}}
"""


@pytest.mark.parametrize("node", [2, 4])
@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter", "all-reduce", "all-to-all"])
def test_what_leaves_a_node(kind, node):
    """8 devices hold one part each of what all have in the end (all-gather), or all parts of a sum. What a node lacks
    must enter it once, and what it has summed of others' parts must leave it once; its devices share that evenly."""
    others = 8 - node
    part = 16 * 4
    enters = {
        "all-gather": others * part,  # the parts of other nodes' devices
        "reduce-scatter": others * part,  # its sums of the parts that others keep
        "all-reduce": 2 * others * part,  # both
        "all-to-all": node * others * part,  # of each of its devices, the parts for others
    }[kind]
    text = collective(kind, 16 if kind == "all-gather" else 8 * 16, "replica_groups={{0,1,2,3,4,5,6,7}}")
    assert hlo.count(text, dict(fsdp=8), node=node).between == pytest.approx(enters / node)
    assert hlo.count(text, dict(fsdp=8)).between == hlo.count(text, dict(fsdp=8), node=8).between == 0


@pytest.mark.parametrize(("pairs", "between"), [("{0,1},{1,0}", 0), ("{0,4},{4,0}", 64), ("{3,4},{4,3}", 64)])
def test_a_permute_leaves_a_node_or_not(pairs, between):
    text = collective("collective-permute", 16, f"source_target_pairs={{{pairs}}}")
    assert hlo.count(text, dict(fsdp=8), node=4).between == between


@pytest.mark.parametrize(
    ("capability", "blocks"),
    [  # of 256 tokens: tiles of 128 x 64, 128 x 128 and 64 x 64; on an A100 64 x 32 twice, and 32 x 64
        ("9.0", (6 * 128 * 64, 3 * 128 * 128, 10 * 64 * 64)),
        ("8.0", (20 * 64 * 32, 20 * 64 * 32, 20 * 32 * 64)),
    ],
)
def test_the_work_of_the_pallas_kernels_is_of_the_blocks_that_they_visit(capability, blocks):
    data = dict(sources=[dict(kind="synthetic")], seq_len=256, batch_size=8)
    run = build(TrainConfig, dict(data=data, steps=1))
    shape = dict(vocab_size=64, d_model=32, d_mlp=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=96)
    model = ModelConfig(**shape, dtype="bfloat16")
    sizes = dict.fromkeys(AXES, 1) | dict(fsdp=4)
    found = known_kernels("pallas, 1 band", run, model, sizes, capability=capability)
    rows_and_heads, width = 2 * 4, 128  # heads of 96 are padded
    kernels = zip(("attention", "attention_d_q", "attention_d_kv"), (2, 3, 4), blocks, strict=True)
    assert found == {name: 2 * matmuls * width * rows_and_heads * pairs for name, matmuls, pairs in kernels}
    # Rows of one document are cuDNN's, shorter ones the kernels'.
    alone = known_kernels("cudnn, 1 band, packed rows by pallas", run, model, sizes, None, capability)
    assert alone == dict.fromkeys(found, 0.0)
    packed = known_kernels("cudnn, 1 band, packed rows by pallas", run, model, sizes, 128, capability)
    assert packed["__cudnn$fmhaSoftmax"] == 0 < packed["attention"] < found["attention"]
    assert known_kernels("blockwise, 1 band", run, model, sizes, None, capability) == {}


@pytest.mark.parametrize(
    ("kind", "capability"), [("NVIDIA H100 80GB HBM3", "9.0"), ("NVIDIA H200", "9.0"), ("NVIDIA A100-SXM4-80GB", "8.0")]
)
def test_attention_is_what_such_a_gpu_would_run(kind, capability):
    """By cuDNN, which need not be here, where it can; bands and float32 are the Pallas kernels'."""
    pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    mesh = AbstractMesh((8, 1, 1, 1), AXES, abstract_device=AbstractDevice(kind, 132, "gpu"))
    about = dict(tokens=1024, heads=(8, 8, 128), batch=8)
    with jax.sharding.use_abstract_mesh(mesh):
        assert devices.capability() == capability
        assert engine.choose("auto", dtype="bfloat16", **about).name == "cudnn"
        assert engine.choose("auto", dtype="float32", **about).name == "pallas"
        assert engine.choose("auto", dtype="bfloat16", bands=(Band(), Band()), **about).name == "pallas"


def test_topologies_of_gpus():
    assert (a_node("h100:1x8"), a_node("a100:4x16"), a_node("v5p:2x2x2")) == (8, 16, 0)
    for kind in GPUS:
        assert CHIPS[kind].between < CHIPS[kind].network < CHIPS[kind].hbm_bandwidth
        assert math.isinf(CHIPS["v5p"].between)


@pytest.mark.parametrize(
    ("topology", "slices", "said"),
    [
        ("h1000:1x8", 1, "kinds are v4, v5e, v5p, v6e, tpu7x, a100, h100, h200"),
        ("h1000:1x8", 1, "Did you mean 'h100'?"),
        ("h100", 1, "expected nodes and the GPUs of each"),
        ("h100:0x8", 1, "as in h100:1x8"),
        ("a100:2x2x2", 1, "as in a100:1x8"),
        ("h100:1x32", 1, "at most 16"),
        ("h100:1x8", 2, "slices are of TPUs. Nodes of GPUs are the first number of a topology, as in h100:2x8"),
    ],
)
def test_what_is_no_topology_of_gpus_is_refused(topology, slices, said):
    with pytest.raises(ConfigError, match="got") as error:
        absent_chips(topology, slices)
    assert said in str(error.value)


def test_without_the_plugin_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "giraffe-jax\[plan-gpu\]"'):
        absent_chips("h100:1x8")


plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)), reason="no CUDA plugin is installed"
)


@plugin
@pytest.mark.parametrize("kind", list(GPUS))
def test_a_scan_compiled_for_gpus(kind):
    """Products with weights over fsdp: as many FLOPs as by hand, and weights that are gathered layer by layer."""
    chips = absent_chips(f"{kind}:2x4")
    mesh = make_mesh(MeshConfig(fsdp=8), chips)
    assert {d.platform for d in chips} == {"gpu"} and [d.process_index for d in mesh.devices.flat] == [0] * 4 + [1] * 4

    def place(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def scanned(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    rows, width, layers = 1024, 512, 3
    with jax.set_mesh(mesh):
        made = jax.jit(scanned).lower(place((rows, width), "fsdp"), place((layers, width, width), None, "fsdp"))
        program = compiled.without_cache(made)
    found = hlo.count(str(program.as_text()), dict(mesh.shape), node=4)
    assert found.flops == layers * 2 * rows * width * width / 8
    weights = layers * width * width * 2
    assert found.collectives == {("all-gather", "fsdp"): weights / 8}
    assert (found.sent, found.between) == (weights / 8 * 7, weights / 8)
    assert found.uncounted == () and found.data_loops == 0


@plugin
@pytest.mark.slow
@pytest.mark.parametrize(("document", "visited"), [(None, None), (128, (2 * 1 * 128 * 64, 128 * 128, 3 * 64 * 64))])
def test_a_plan_for_gpus(tmp_path, capsys, document, visited):
    """A small Llama by hand: forward once and again for full remat, but for each layer's last product, which no
    gradient needs; backward twice that; attention of cuDNN by its pairs, or of the kernels by the blocks they visit."""
    V, D, F, L, N, K, H, T = 512, 256, 384, 2, 4, 2, 64 * 2, 512
    shape = dict(vocab_size=V, d_model=D, d_mlp=F, num_layers=L, num_heads=N, num_kv_heads=K, head_dim=H)
    data = dict(sources=[dict(kind="text", path="/not/here")], seq_len=T, batch_size=8)
    values = dict(steps=10, model=shape | dict(dtype="bfloat16", remat="full"), data=data, mesh=dict(fsdp=8))
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    words = ["plan", f"--config={tmp_path / 'config.py'}", "--topology=h100:1x8", "--json"]
    assert main([*words, *([] if document is None else [f"--document={document}"])]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["attention"] == "cudnn, 1 band, packed rows by pallas"
    matrices = L * (2 * D * N * H + 2 * D * K * H + 3 * D * F) + V * D
    if visited is None:
        attention = 2 * (2 + 2 + 5) * H * N * L * T * (T + 1) // 2
    else:
        forward, d_q, d_kv = (blocks * T // document for blocks in visited)
        attention = 2 * H * N * L * (2 * 2 * forward + 3 * d_q + 4 * d_kv)
    again = 2 * T * (matrices - V * D - L * D * F)
    assert said["executed_flops"] == 6 * matrices * T + again + attention
    assert said["uncounted"] == [] and said["data_loops"] == 0
    assert said["fits"] and said["argument_bytes"] < said["peak_bytes"] < said["hbm_bytes"] == 84_942_979_072
    every = matrices + V * D + (2 * L + 1) * D
    assert said["parameter_bytes"] == 4 * ((matrices + V * D) / 8 + (2 * L + 1) * D)  # float32; norms are whole
    assert said["model_flops"] == 6 * every * T + 6 * L * N * H * T * ((document or T) + 1)
    assert said["between_nodes_bytes"] == 0


@plugin
@pytest.mark.slow
def test_what_does_not_fit_a_gpu_is_told_by_how_much(tmp_path, capsys):
    shape = dict(vocab_size=2**22, d_model=4096, d_mlp=48, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=8)
    data = dict(sources=[dict(kind="text", path="/not/here")], seq_len=128, batch_size=8)
    values = dict(steps=10, model=shape, data=data, mesh=dict(fsdp=1, data=2))
    (tmp_path / "config.py").write_text(f"def get_config():\n    return {values!r}\n")
    assert main(["plan", f"--config={tmp_path / 'config.py'}", "--topology=h100:1x2", "--tries=0"]) == 1
    said = capsys.readouterr().out
    assert "of 79.11 GiB: does not fit, " in said and "GiB too much" in said
