import pytest

from nanorlhf.nanosets import Dataset, concatenate_datasets


def test_columns_stand_side_by_side_without_a_copy():
    one = Dataset.from_dict({"a": [1, 2, 3]}).shuffle(seed=0)
    two = Dataset.from_dict({"b": list("xyz"), "c": [1.5, 2.5, None]})
    found = concatenate_datasets([one, two], axis=1)
    assert found.to_dict() == {**one.to_dict(), **two.to_dict()}
    assert found.columns["b"] is two.columns["b"]


def test_columns_that_do_not_go_together_are_refused():
    one = Dataset.from_dict({"a": [1, 2, 3]})
    with pytest.raises(ValueError, match="column 'a' is in two of the datasets; rename one"):
        concatenate_datasets([one, one], axis=1)
    with pytest.raises(ValueError, match="columns differ in length"):
        concatenate_datasets([one, Dataset.from_dict({"b": [1]})], axis=1)
    with pytest.raises(ValueError, match="axis=2 is neither 0"):
        concatenate_datasets([one, one], axis=2)
