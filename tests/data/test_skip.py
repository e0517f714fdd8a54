"""PoSE's and CREAM's rows against their released samplers, written out; targets against the document."""

import random

import numpy as np
import pytest

from giraffe_jax.config import ConfigError, build
from giraffe_jax.data import DataConfig, SkipConfig, SourceConfig, make_pipeline
from giraffe_jax.data.skip import cream, pose, skipped_row
from giraffe_jax.tokenizer import ByteTokenizer
from giraffe_jax.training.config import TrainConfig
from giraffe_jax.training.loop import train

N, FACTOR = 96, 4
POSE, CREAM = SkipConfig("pose", FACTOR * N), SkipConfig("cream", FACTOR * N)
SHARES = [0.05, 0.25, 0.5, 0.75, 0.95]


def drawn(draw, size, config, count=4000):
    return [draw(np.random.default_rng((1, i)), size, N, config) for i in range(count)]


@pytest.mark.parametrize("size", [60, 96, 300, 2000])
def test_pose_is_the_released_sampler(size):
    """train_pose.py: rt1, rt2 and the skip, as their ranges say; text cut after five windows."""
    rows = drawn(pose, size, POSE)
    length = min(size, 5 * N)
    n = min(length, N)
    got = []
    for index, positions in rows:
        assert len(index) == len(positions) == n
        first = int((np.diff(positions, prepend=-1) == 1).argmin()) or n
        first = next((t for t in range(1, n) if index[t] != t or positions[t] != t), n)
        np.testing.assert_array_equal(index[:first], np.arange(first))
        np.testing.assert_array_equal(np.diff(index[first:]), 1)
        np.testing.assert_array_equal(np.diff(positions[first:]), 1)
        got.append((index[-1] + 1, positions[-1]))
    rng = random.Random(0)
    want = [(rng.randint(n, length), rng.randint(0, FACTOR * N - n) + n - 1) for _ in range(20000)]
    for g, w in zip(np.array(got).T, np.array(want).T, strict=True):
        np.testing.assert_allclose(np.quantile(g, SHARES), np.quantile(w, SHARES), atol=0.05 * (np.ptp(w) + 1))
        assert g.min() >= w.min() and g.max() <= w.max()


def test_poses_first_stretch_is_at_most_half():
    firsts = [next(t for t in range(1, N) if p[t] != t) for i, p in drawn(pose, 2000, POSE) if p[-1] > N]
    assert min(firsts) == 1 and max(firsts) == (N + 1) // 2
    np.testing.assert_allclose(np.mean(firsts), (1 + (N + 1) // 2) / 2, atol=1)


def released_cream(rng, size):
    head = N // 3 if rng.integers(2) else 4 * FACTOR
    m = N - 2 * head
    a = int(np.clip(rng.normal(FACTOR + 1, 3.0), 2, 2 * FACTOR))
    end = int(rng.integers(int(head + (m - 1) * (a / 2)), int(a / 2 * N - head - 1) + 1))
    return head, end


@pytest.mark.parametrize("size", [96, 200, 384, 1000])
def test_cream_is_the_released_sampler(size):
    rng = np.random.default_rng(0)
    want = [released_cream(rng, size) for _ in range(20000)]
    ends, heads = [], []
    for index, positions in drawn(cream, size, CREAM):
        head = 32 if (positions[16:32] == np.arange(16, 32)).all() and positions[-32] == FACTOR * N - 32 else 16
        heads.append(head)
        ends.append(positions[N - head - 1])
        np.testing.assert_array_equal(positions[:head], np.arange(head))
        np.testing.assert_array_equal(positions[-head:], np.arange(FACTOR * N - head, FACTOR * N))
        np.testing.assert_array_equal(index[:head], np.arange(head))
        np.testing.assert_array_equal(index[-head:], np.arange(size - head, size))
        middle = slice(head, N - head)
        if positions[middle][-1] < size - head:  # text and positions agree
            np.testing.assert_array_equal(index[middle], positions[middle])
        else:
            np.testing.assert_array_equal(index[middle], np.arange(size - head - (N - 2 * head), size - head))
    assert 0.45 < np.mean(np.array(heads) == 32) < 0.55
    want_ends = [end for _, end in want]
    np.testing.assert_allclose(np.quantile(ends, SHARES), np.quantile(want_ends, SHARES), atol=0.05 * FACTOR * N)


@pytest.mark.parametrize(("draw", "config"), [(pose, POSE), (cream, CREAM)])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 95, 96, 97, 500])
def test_no_token_twice_and_every_target_its_successor(draw, config, size):
    document = np.arange(100, 100 + size, dtype=np.int32)
    for index, positions in drawn(draw, size, config, 200):
        assert (np.diff(index) >= 1).all() and index[0] == 0 and index[-1] < size
        assert (np.diff(positions) >= 1).all() and positions[0] == 0 and positions[-1] < config.target_len
        made = skipped_row(document, type(drawn(draw, size, config, 1)[0])(index, positions), N)
        n = len(index)
        np.testing.assert_array_equal(made["tokens"][:n], document[index])
        last = index == size - 1
        np.testing.assert_array_equal(made["weights"][:n], np.where(last, 0.0, 1.0))
        np.testing.assert_array_equal(made["targets"][:n][~last], document[index[~last]] + 1)
        np.testing.assert_array_equal(made["segments"], np.arange(N) < n)
        assert not made["weights"][n:].any()


@pytest.fixture
def texts(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.txt").write_text(chr(97 + i) * (50 + 60 * i))
    return tmp_path


@pytest.mark.parametrize("skip", [POSE, CREAM])
def test_rows_depend_on_the_step_alone_and_an_epoch_is_every_document(texts, skip):
    config = DataConfig(sources=(SourceConfig("text", str(texts)),), seq_len=N, batch_size=7, skip=skip)
    batches = [make_pipeline(config, ByteTokenizer()).batch(step) for step in range(4)]
    again = make_pipeline(config, ByteTokenizer())
    for step in reversed(range(4)):
        for name, value in again.batch(step).items():
            np.testing.assert_array_equal(value, batches[step][name])
    for batch in batches:
        assert sorted(batch["tokens"][:, 0]) == list(range(97, 104))
        assert batch["positions"].dtype == np.float32 and batch["positions"].shape == (7, N)
    by_document = [b["positions"][np.argsort(b["tokens"][:, 0])] for b in batches]
    assert not np.array_equal(by_document[0], by_document[1]), "a document is cut anew in every epoch"
    plain = make_pipeline(DataConfig(sources=config.sources, seq_len=N, batch_size=7), ByteTokenizer())
    assert plain.fingerprint != again.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(skip=dict(kind="pose", target_len=95)), "target_len: got 95; pose takes at least seq_len 96"),
        (dict(skip=dict(kind="cream", target_len=100)), "cream takes 2, 3, ... times seq_len 96"),
        (dict(skip=dict(kind="pose", target_len=384, reach=0)), "reach: must be >= 1"),
        (dict(skip=dict(kind="pose", target_len=384), packing="document"), "a row holds one document"),
        (dict(skip=dict(kind="posed", target_len=384)), "'pose'"),
    ],
)
def test_wrong_requests_are_refused(texts, changes, message):
    with pytest.raises(ConfigError, match=message):
        sources = [dict(kind="text", path=str(texts))]
        make_pipeline(
            build(DataConfig, dict(sources=sources, seq_len=N, batch_size=7) | changes, "data"), ByteTokenizer()
        )


def test_positions_are_not_drawn_twice(texts, tmp_path):
    for name, content in ByteTokenizer().files().items():
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / name).write_bytes(content)
    shape = dict(vocab_size=258, d_model=8, d_mlp=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
    model = shape | dict(positions=[dict(name="pose", target_len=384)])
    data = DataConfig(sources=(SourceConfig("text", str(texts)),), seq_len=N, batch_size=7, skip=POSE)
    config = TrainConfig(data=data, steps=1, model=model, tokenizer=str(tmp_path / "words"))
    with pytest.raises(ConfigError, match="carry their own positions, which pose would draw again"):
        train(config, tmp_path / "run")
