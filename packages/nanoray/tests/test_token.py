"""The token file is made once, is private, and is refused when it is not."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from nanorlhf.nanoray.errors import AuthenticationError
from nanorlhf.nanoray.token import TOKEN_BYTES, load_token, obtain_token


def test_the_first_use_makes_a_private_token_and_the_next_finds_it(tmp_path):
    path = tmp_path / "new" / "token"
    token = obtain_token(path)
    assert len(token) == TOKEN_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert obtain_token(path) == load_token(path) == token
    assert os.listdir(path.parent) == ["token"]


def test_two_places_get_different_tokens(tmp_path):
    assert obtain_token(tmp_path / "a") != obtain_token(tmp_path / "b")


def test_many_at_once_agree_on_one_token(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(obtain_token, [tmp_path / "token"] * 32))
    assert len(tokens) == 1


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602, 0o610])
def test_a_file_that_others_can_use_is_refused_with_the_fix(tmp_path, mode):
    path = tmp_path / "token"
    obtain_token(path)
    path.chmod(mode)
    with pytest.raises(AuthenticationError, match=f"mode {mode:04o}.*chmod 600 {path}"):
        obtain_token(path)


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "\xff" * 40])
def test_a_file_that_holds_no_token_is_refused(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(AuthenticationError, match="64 hex digits"):
        load_token(path)


def test_a_missing_file_says_where_to_get_one(tmp_path):
    with pytest.raises(AuthenticationError, match="copy it from the head's machine"):
        load_token(tmp_path / "token")


def test_a_directory_and_a_pipe_are_no_token(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("pipe", "directory"):
        with pytest.raises(AuthenticationError, match="not a regular file"):
            load_token(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "token"
    obtain_token(path)
    os.chown(path, 12345, -1)
    with pytest.raises(AuthenticationError, match="belongs to uid 12345"):
        load_token(path)
