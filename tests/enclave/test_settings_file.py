"""The settings as one file: what it may look like, and that nothing in it is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_app.settings import InvalidSettings, Settings
from enclave_app.settings_file import MAX_SIZE, read

HOSTILE = (
    "LD_PRELOAD",
    "PYTHONPATH",
    "HF_ENDPOINT",
    "TORCH_LOGS",
    "https_proxy",
    "PATH",
    "HOME",
    "GLIBC_TUNABLES",
)


def test_lines_comments_and_the_zeros_of_a_disk() -> None:
    data = b"# of the settings partition\n\nBLINDBOX_PORT=8080\nBLINDBOX_AUTHORITIES=a.example, b.example\n"
    assert read(data + bytes(512)) == {
        "BLINDBOX_PORT": "8080",
        "BLINDBOX_AUTHORITIES": "a.example, b.example",
    }
    assert read(b"") == read(bytes(4096)) == {}


def test_what_it_says_is_in_the_digest_that_is_attested() -> None:
    """S-31: the same settings, said otherwise, have the same digest; other settings have another."""
    one = Settings.from_environ(read(b"BLINDBOX_PORT=8080\nBLINDBOX_ENGINE=echo\n"))
    same = Settings.from_environ(read(b"# echo\nBLINDBOX_ENGINE=echo\nBLINDBOX_PORT=8080\n\0\0"))
    other = Settings.from_environ(read(b"BLINDBOX_PORT=8081\nBLINDBOX_ENGINE=echo\n"))
    assert one.digest() == same.digest() != other.digest()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_variable_passes(name: str) -> None:
    """S-31."""
    with pytest.raises(InvalidSettings, match="line 1"):
        read(f"{name}=1\n".encode())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"BLINDBOX_PORT=1\nBLINDBOX_PORT=2", "line 2 says BLINDBOX_PORT again"),
        (b"BLINDBOX_PORT = 1", "line 1 is not NAME=value"),
        (b" BLINDBOX_PORT=1", "line 1 is not NAME=value"),
        (b"export BLINDBOX_PORT=1", "line 1 is not NAME=value"),
        (b"\n\nBLINDBOX_AUDIENCE=\xc3\xa9", "line 3 gives BLINDBOX_AUDIENCE a value"),
        (b"BLINDBOX_PORT=80\r\n", "line 1 gives BLINDBOX_PORT a value"),
        (b"BLINDBOX_AUDIENCE=" + b"a" * 1025, "line 1 gives BLINDBOX_AUDIENCE a value"),
        (b"blindbox_port=80", "line 1 sets blindbox_port"),
        (b"BLINDBOX_PORT=80\n\0and more", "go on behind a zero byte"),
        (b"#" * (MAX_SIZE + 1), "more than 65536 bytes"),
    ],
)
def test_what_is_no_setting_is_named_by_its_line(data: bytes, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        read(data)


def test_values_are_not_repeated() -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(b"BLINDBOX_AUDIENCE=hunter2\xff\nPASSWORD=hunter2\nhunter2\n")
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).count("\n") == 2


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = read(data)
    except InvalidSettings:
        return
    assert all(name.startswith("BLINDBOX_") for name in found)
