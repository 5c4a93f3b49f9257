import numpy as np
import pytest

from nanorlhf.nanosets import Dataset, SchemaError, load_dataset
from nanorlhf.nanosets.types import NUMBERS

torch = pytest.importorskip("torch", reason="its tensors are what is made")


@pytest.fixture
def ds(tmp_path):
    values = {
        **{name: [1, 2, 3] for name in NUMBERS},
        "image": np.arange(18).reshape(3, 2, 3),
        "pair": [[1, 2], [3, 4], [5, 6]],
        "flag": [True, False, True],
        "hole": [1, None, 3],
        "text": ["a", "b", "c"],
    }
    types = {name: name for name in NUMBERS}
    types |= {"image": "tensor<int16, 2, 3>", "pair": "fixed_list<bfloat16, 2>"}
    types |= {"flag": "bool", "hole": "int8", "text": "utf8"}
    Dataset.from_dict(values, features=types).save_to_disk(tmp_path / "a.nano")
    return load_dataset(tmp_path / "a.nano")


def address_of(column):
    *_, data = column.parts[0].array.window(0, 0, 3).buffers()
    return data.ctypes.data


def test_every_number_type_is_a_torch_tensor_over_the_mapped_file(ds):
    for name in NUMBERS:
        found = ds[name].torch()
        assert found.dtype == getattr(torch, name)
        assert found.tolist() == [1, 2, 3]
        assert found.data_ptr() == address_of(ds[name]), name


def test_tensors_and_lists_of_one_size_have_their_shape(ds):
    image, pair = ds["image"].torch(), ds["pair"].torch()
    assert torch.equal(image, torch.arange(18, dtype=torch.int16).reshape(3, 2, 3))
    assert image.data_ptr() == address_of(ds["image"])
    assert (pair.dtype, pair.tolist()) == (torch.bfloat16, [[1, 2], [3, 4], [5, 6]])
    assert pair.data_ptr() == address_of(ds["pair"])


def test_numpy_reads_dlpack_and_knows_that_it_must_not_write(ds):
    found = np.from_dlpack(ds["image"])
    assert found.ctypes.data == address_of(ds["image"])
    assert not found.flags.writeable
    assert torch.equal(torch.from_dlpack(ds["int64"]), torch.tensor([1, 2, 3]))
    assert ds["int64"].__dlpack_device__() == (1, 0)


def test_rows_that_were_picked_are_gathered_first(ds):
    assert ds.select([2, 0])["image"].torch()[:, 0, 0].tolist() == [12, 0]
    assert ds.select([])["float32"].torch().shape == (0,)


def test_a_tensor_keeps_the_file_mapped(tmp_path):
    Dataset.from_dict({"a": np.arange(1000)}).save_to_disk(tmp_path / "a.nano")
    found = load_dataset(tmp_path / "a.nano")["a"].torch()
    (tmp_path / "a.nano").unlink()
    assert int(found.sum()) == 499_500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hole", "a value of this int8 column is null; filter or fill it"),
        ("text", "utf8 has no tensor form; select a column of numbers"),
        ("flag", "bool has no tensor form"),
    ],
)
def test_what_is_no_tensor_is_refused(ds, name, message):
    with pytest.raises(SchemaError, match=message):
        ds[name].torch()


def test_dlpack_refuses_what_numpy_cannot_name(ds):
    with pytest.raises(SchemaError, match=r"numpy, which has no bfloat16; use torch\(\)"):
        np.from_dlpack(ds["bfloat16"])
