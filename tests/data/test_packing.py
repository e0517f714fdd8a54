"""Packing against a slow reading of the same rules: no token lost, none repeated, targets only within a document."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_jax.data.packing import plan, window

documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def rows_of(sizes, seq_len, how, seed=0):
    """Documents of the given sizes whose tokens are all different (1, 2, ...), and their windows."""
    ends = np.cumsum(np.asarray(sizes, np.int64))
    tokens = np.arange(1, ends[-1] + 1, dtype=np.int32)
    plan_ = plan(ends, np.random.default_rng(seed).permutation(len(sizes)), seq_len, how)
    return ends, [window(plan_, i, tokens, seq_len) for i in range(plan_.num_windows)]


@pytest.mark.parametrize("how", ["concat", "document"])
@given(sizes=documents, seq_len=st.integers(1, 64), seed=st.integers(0, 99))
@settings(max_examples=150)
def test_every_token_once_and_every_successor_known(how, sizes, seq_len, seed):
    ends, rows = rows_of(sizes, seq_len, how, seed)
    held = np.concatenate([row["tokens"][row["segments"] > 0] for row in rows])
    assert sorted(held) == list(range(1, ends[-1] + 1))
    lasts = set(ends.tolist())  # token ids count from 1, so a document's last token is its end
    for row in rows:
        for token, target, weight, segment in zip(
            row["tokens"], row["targets"], row["weights"], row["segments"], strict=True
        ):
            if segment == 0:
                assert (token, target, weight) == (0, 0, 0)
            elif int(token) in lasts:
                assert weight == 0
            else:
                assert weight == 1 and target == token + 1


@pytest.mark.parametrize("how", ["concat", "document"])
@given(sizes=documents, seq_len=st.integers(1, 64))
@settings(max_examples=100)
def test_a_segment_is_one_stretch_of_one_document(how, sizes, seq_len):
    ends, rows = rows_of(sizes, seq_len, how)
    for row in rows:
        present = row["segments"][row["segments"] > 0]
        assert list(dict.fromkeys(present)) == list(range(1, len(set(present)) + 1)), "segments count up from 1"
        for segment in set(present.tolist()):
            here = row["segments"] == segment
            assert np.array_equal(row["positions"][here], np.arange(here.sum()))
            ids = row["tokens"][here]
            assert np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
            assert len(set(np.searchsorted(ends, ids))) == 1
        assert not row["positions"][row["segments"] == 0].any()


@given(sizes=documents, seq_len=st.integers(1, 64))
@settings(max_examples=100)
def test_concat_pads_the_last_window_only(sizes, seq_len):
    ends, rows = rows_of(sizes, seq_len, "concat")
    assert len(rows) == -(-int(ends[-1]) // seq_len)
    assert all(row["segments"].all() for row in rows[:-1])


@given(sizes=documents, seq_len=st.integers(1, 64))
@settings(max_examples=100)
def test_whole_documents_stay_whole_and_windows_are_well_filled(sizes, seq_len):
    ends, rows = rows_of(sizes, seq_len, "document")
    starts = np.concatenate([[0], ends[:-1]])
    for row in rows:
        for segment in set(row["segments"].tolist()) - {0}:
            ids = row["tokens"][row["segments"] == segment]
            document = int(np.searchsorted(ends, ids[0]))
            offset = int(ids[0]) - 1 - int(starts[document])
            assert offset % seq_len == 0
            assert len(ids) == min(seq_len, sizes[document] - offset)
    # A piece opens a window only where it fits no open one, so no two windows could be one: at most one is half empty.
    filled = sorted(int((row["segments"] > 0).sum()) for row in rows)
    assert len(filled) < 2 or filled[0] + filled[1] > seq_len
