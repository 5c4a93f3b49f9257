"""The scripts import each other by plain name, as they do when one of them is run."""

import sys
from pathlib import Path

import pytest

PIPELINES = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PIPELINES))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Keep run folders and relative paths of a test inside its temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANORLHF_DATA", raising=False)


@pytest.fixture
def pipelines():
    """Return the folder of the scripts."""
    return PIPELINES
