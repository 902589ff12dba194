"""
A TPM 2.0 in software, as a virtual machine's own: `swtpm`, with a state in a folder.

It proves the plumbing and nothing more: who runs it can read its keys. Its attestation key is known before
the machine boots, because a primary key grows from the TPM's seed in the same way each time; so a policy can
pin it.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import FailedProgram
from ..programs import find, ours

if TYPE_CHECKING:
    from enclave_app.quoting.tpm_commands import Transport

PATIENCE: Final = 30.0  # seconds until swtpm is given up
SOCKET: Final = "control"
_MADE: Final = "tpm2-00.permall"  # swtpm's own name of its state


def manufacture(state: Path) -> None:
    """A new TPM in this folder, with registers of SHA-256 and SHA-384; one that is there already stays."""
    if (state / _MADE).exists():
        return
    state.mkdir(parents=True, exist_ok=True)
    ours("swtpm_setup", "--tpm2", "--tpmstate", state, "--pcr-banks", "sha256,sha384", "--overwrite")


def key_digest(state: Path, kind: str = "ecc") -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of the attestation key: what `--ak-key` of a policy takes."""
    # Here, since a build needs nothing installed, and shares a command line with this.
    from enclave_app.quoting.tpm import attestation_key
    from enclave_app.quoting.tpm_commands import Tpm

    with switched_on(state) as transport:
        return hashlib.sha256(attestation_key(Tpm(transport), kind).public_bytes()).digest()


@contextmanager
def switched_on(state: Path) -> Iterator[Transport]:
    """The TPM without a machine around it, for commands of this host."""
    with _socket_folder() as folder:
        server = folder / "tpm"
        options = ["--server", f"type=unixio,path={server}", "--flags", "not-need-init,startup-clear"]
        with _running(state, folder / SOCKET, *options, until=server):
            yield _Socket(server)


@contextmanager
def for_machine(state: Path) -> Iterator[Path]:
    """The TPM, waiting for a machine at the socket that is given; it ends with the block."""
    with _socket_folder() as folder, _running(state, folder / SOCKET):
        yield folder / SOCKET


@contextmanager
def _socket_folder() -> Iterator[Path]:
    # Not below the state: a socket's path may have 107 characters only.
    with tempfile.TemporaryDirectory(prefix="blindbox-tpm-") as folder:
        yield Path(folder)


@contextmanager
def _running(state: Path, control: Path, *options: str, until: Path | None = None) -> Iterator[None]:
    # It makes its sockets one after another.
    command = [find("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    log = state / "swtpm.log"
    process = subprocess.Popen(  # noqa: S603 - a list, never a shell
        [*command, "--ctrl", f"type=unixio,path={control}", "--log", f"file={log}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # it outlives a Ctrl-C, as the machine does until it is switched off
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (control.exists() and (until or control).exists()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedProgram(f"swtpm did not start; its log is {log}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()
        process.wait()


def exchange(connection: socket.socket, command: bytes) -> bytes:
    """One command to swtpm and its whole response: the size is in the head (TPM 2.0 Library, Part 1)."""
    connection.sendall(command)
    response = b""
    while len(response) < 10 or len(response) < struct.unpack_from(">I", response, 2)[0]:
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionError("the TPM is gone")
        response += piece
    return response


class _Socket:
    """swtpm's socket for commands; each has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def transmit(self, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self._path))
            return exchange(connection, command)

    def close(self) -> None:
        pass
