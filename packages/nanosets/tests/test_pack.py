import numpy as np
import pytest

from nanorlhf.nanosets import Batch, Dataset, TokenStream, WholeDocuments, best_fit, load_from_disk


def documents(count, seed=0, longest=9):
    """Documents of distinct tokens, some of them empty or null, with a mask as long."""
    rng = np.random.default_rng(seed)
    rows, token = [], 0
    for i in range(count):
        length = int(rng.integers(0, longest + 1))
        tokens = list(range(token, token + length))
        token += length
        rows.append(
            {"tokens": None if i % 7 == 3 else tokens, "mask": [t % 2 == 0 for t in tokens]}
        )
        rows[-1]["mask"] = rows[-1]["mask"] if rows[-1]["tokens"] is not None else None
    return rows


def stream_by_definition(rows, order, length, overlap, *, drop_last):
    """Token by token: samples as lists of (row, token), cut from one long list."""
    flat = [(row, token) for row in order for token in rows[row]["tokens"] or []]
    samples = [flat[at : at + length + overlap] for at in range(0, len(flat) - overlap, length)]
    return [s for s in samples if not drop_last or len(s) == length + overlap]


def bounds_by_definition(sample):
    """Where the row changes."""
    edges = [0]
    for i in range(1, len(sample) + 1):
        if i == len(sample) or sample[i][0] != sample[i - 1][0]:
            edges.append(i)
    return edges


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("length", [1, 4, 5, 30])
def test_a_stream_is_cut_every_length_tokens(length, overlap, drop_last, tmp_path):
    rows = documents(40)
    Dataset.from_list(rows).save_to_disk(tmp_path / "a.nano", chunk_rows=6)
    ds = load_from_disk(tmp_path / "a.nano")
    stream = TokenStream(
        ds, length, columns=["tokens", "mask"], overlap=overlap, drop_last=drop_last
    )
    want = stream_by_definition(rows, range(40), length, overlap, drop_last=drop_last)
    assert len(stream) == len(want)
    for sample, batch in zip(want, stream, strict=True):
        assert batch["tokens"].tolist() == [token for _, token in sample]
        assert batch["mask"].tolist() == [token % 2 == 0 for _, token in sample]
        assert batch.cu_seqlens.tolist() == bounds_by_definition(sample)


def test_samples_are_read_together_in_any_order():
    rows = documents(40)
    stream = TokenStream(Dataset.from_list(rows), 6)
    picked = [5, 0, 5, len(stream) - 1]
    batch = stream[picked]
    assert batch["tokens"].reshape(4, 6).tolist() == [stream[i]["tokens"].tolist() for i in picked]
    bounds = [stream[i].cu_seqlens.tolist() for i in picked]
    want = [0] + [6 * k + edge for k, edges in enumerate(bounds) for edge in edges[1:]]
    assert batch.cu_seqlens.tolist() == want
    assert stream[-1]["tokens"].tolist() == stream[len(stream) - 1]["tokens"].tolist()
    assert stream[2:4]["tokens"].tolist() == stream[[2, 3]]["tokens"].tolist()
    assert stream[[]]["tokens"].tolist() == []
    with pytest.raises(IndexError, match="is not in a dataset of"):
        stream[len(stream)]


def test_a_seed_orders_the_documents_anew_in_every_epoch():
    rows = [{"tokens": [i] * 3} for i in range(20)]
    ds = Dataset.from_list(rows)
    stream = TokenStream(ds, 3, seed=4, epochs=3)
    order = [int(batch["tokens"][0]) for batch in stream]
    epochs = [order[:20], order[20:40], order[40:]]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[1] == np.random.default_rng([4, 1]).permutation(20).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0 and epochs=1 are positive"),
        ({"length": 4, "epochs": 0}, "epochs=0 are positive"),
        ({"length": 4, "overlap": -1}, "overlap=-1 at least 0"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenStream(Dataset.from_dict({"tokens": [[1]]}), **options)


def test_columns_of_other_lengths_are_named():
    ds = Dataset.from_dict({"tokens": [[1], [2, 3]], "mask": [[1], [1]]})
    message = "row 1: 'mask' is not as long as 'tokens'; give one value a token"
    with pytest.raises(ValueError, match=message):
        TokenStream(ds, 3, columns=["tokens", "mask"])[0]
    with pytest.raises(ValueError, match=message):
        WholeDocuments(ds, 3, columns=["tokens", "mask"])[0]
    with pytest.raises(ValueError, match="a list has a null inside"):
        TokenStream(Dataset.from_dict({"tokens": [[1, None]]}), 2)[0]


def best_fit_by_definition(lengths, capacity):
    """The room left in each bin, documents placed one by one, the longest first."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting and length:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        elif length:
            rooms.append(capacity - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("capacity", "low"), [(1, 0), (7, 0), (32, 1), (32, 15), (400, 0)])
def test_best_fit_leaves_the_room_that_its_definition_leaves(capacity, low, seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.1, rng.integers(0, 200)) - 1 + low, capacity)
    found = best_fit(lengths, capacity)
    groups = [rows.tolist() for rows in found.rows()]
    assert sorted(row for rows in groups for row in rows) == np.flatnonzero(lengths).tolist()
    assert all(rows == sorted(rows) for rows in groups)
    assert [rows[0] for rows in groups] == sorted(rows[0] for rows in groups)
    rooms = sorted(capacity - int(lengths[rows].sum()) for rows in groups)
    assert rooms == best_fit_by_definition(lengths.tolist(), capacity)


def test_whole_documents_are_sequences_of_a_sample():
    rows = documents(60, seed=1)
    samples = WholeDocuments(Dataset.from_list(rows), 12, columns=["tokens", "mask"])
    seen = []
    for batch in samples:
        assert len(batch["tokens"]) <= 12
        for part in batch.ragged("tokens").rows():
            seen.append(part.tolist())
        assert batch["mask"].tolist() == [token % 2 == 0 for token in batch["tokens"]]
    assert sorted(seen) == sorted(row["tokens"] for row in rows if row["tokens"])
    both = samples[[1, 0]]["tokens"].tolist()
    assert both == samples[1]["tokens"].tolist() + samples[0]["tokens"].tolist()


def test_a_document_that_fits_nowhere_is_an_error_or_dropped():
    ds = Dataset.from_dict({"tokens": [[1], [2] * 9, [3] * 2]})
    with pytest.raises(ValueError, match="row 1 has 9 tokens for a capacity of 4; cut it, raise"):
        WholeDocuments(ds, 4)
    assert WholeDocuments(ds, 4, overlong="drop").rows.values.tolist() == [0, 2]
    with pytest.raises(ValueError, match="capacity=0 is not positive"):
        best_fit(np.array([1]), 0)


@pytest.fixture
def batch():
    offsets = np.array([0, 2, 2, 5])
    return Batch({"tokens": np.arange(5), "mask": np.array([1, 0, 1, 1, 0], bool)}, offsets)


def test_a_batch_says_where_its_sequences_are(batch):
    assert list(batch) == ["tokens", "mask"]
    assert len(batch) == 2
    assert batch.num_sequences == 3
    assert batch.lengths.tolist() == [2, 0, 3]
    assert batch.max_seqlen == 3
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2]
    assert batch.padded("tokens", pad_value=-1).tolist() == [[0, 1, -1], [-1] * 3, [2, 3, 4]]
    assert batch.padded("tokens", length=4, left=True)[0].tolist() == [0, 0, 0, 1]
    assert repr(batch) == "Batch(['tokens', 'mask'], 3 sequences, 5 tokens)"
    huge = Batch({}, np.array([0, 2**31]))
    with pytest.raises(ValueError, match="2147483648 tokens are too many for int32"):
        _ = huge.cu_seqlens


def test_a_batch_becomes_tensors(batch, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    found = batch.torch()
    assert found["tokens"].tolist() == [0, 1, 2, 3, 4]
    assert found["mask"].dtype == torch.bool
    assert found["cu_seqlens"].dtype == torch.int32
    assert found["position_ids"].tolist() == [0, 1, 0, 1, 2]
    frozen = np.arange(3)
    frozen.flags.writeable = False
    found = Batch({"t": frozen}, np.array([0, 3])).torch()
    found["t"][0] = 9
    assert frozen[0] == 0


def test_a_batch_is_gathered_from_rows():
    ds = Dataset.from_list(documents(10))
    batch = Batch.of(ds, np.array([4, 2]), ["tokens", "mask"])
    tokens = ds.with_format("python")[[4, 2]]["tokens"]
    assert [row.tolist() for row in batch.ragged("tokens").rows()] == tokens


@pytest.mark.slow
def test_a_million_documents_are_packed_quickly():
    import time

    lengths = np.random.default_rng(0).integers(1, 400, 1_000_000)
    start = time.process_time()
    found = best_fit(lengths, 4096)
    assert time.process_time() - start < 5
    assert lengths.sum() / (4096 * (len(found.offsets) - 1)) > 0.99
