"""
A real TPM 2.0, in software: `swtpm` on loopback, with a state of its own that dies with the block.

    with swtpm() as tpm:
        quoter = TpmQuoter(tpm.open)

`tpm2-tools` looks at the same TPM from outside (`tpm.tool("tpm2_pcrextend", …)`). Where the programs are
missing they are installed if that was asked for (`CI=true` or `BLINDBOX_INSTALL=1`), and otherwise the tests
that need them are skipped and say why.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from enclave_app.quoting.tpm_commands import Tpm
from image.vm.run.tpm import exchange
from tests.kit.debian import install_if_asked
from tests.kit.process import free_port

PACKAGES = {"swtpm": "swtpm", "swtpm_setup": "swtpm-tools", "tpm2_pcrextend": "tpm2-tools"}


class Socket:
    """
    swtpm's command port: plain commands and responses.

    It serves one connection at a time, so each command has its own, and tpm2-tools find a turn in between.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def transmit(self, command: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            return exchange(connection, command)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SoftwareTpm:
    """A TPM that runs. Without a resource manager: keys stay until `forget_keys`."""

    port: int
    state: Path

    def open(self) -> Socket:
        return Socket(self.port)

    @property
    def commands(self) -> Tpm:
        """Our own commands."""
        return Tpm(self.open())

    def forget_keys(self) -> None:
        self.tool("tpm2_flushcontext", "-t")

    def tool(self, *command: str) -> str:
        """A program of tpm2-tools, which speaks to this TPM; its output."""
        # The tools find the platform's controls at the next port, where swtpm is told to have them.
        tcti = f"swtpm:host=127.0.0.1,port={self.port}"
        done = subprocess.run(
            command,
            env={**os.environ, "TPM2TOOLS_TCTI": tcti},
            cwd=self.state,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def extend(self, *events: tuple[int, bytes]) -> None:
        """Registers and SHA-256 digests, in the order in which a boot measures them."""
        for at in range(0, len(events), 8):
            some = events[at : at + 8]
            self.tool("tpm2_pcrextend", *(f"{register}:sha256={digest.hex()}" for register, digest in some))


def missing() -> list[str]:
    return [program for program in PACKAGES if shutil.which(program) is None]


@cache
def need_swtpm() -> None:
    """Skip the test if there is no swtpm and it may not be installed."""
    install_if_asked(missing(), *PACKAGES.values())


def _manufacture(state: Path) -> None:
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), "--pcr-banks", "sha256,sha384", "--overwrite"]
    subprocess.run(setup, check=True, capture_output=True)


@contextmanager
def swtpm() -> Iterator[SoftwareTpm]:
    """A fresh TPM with banks of SHA-256 and SHA-384, switched on."""
    need_swtpm()
    # Absolute, and not below pytest's folder, whose name may be longer than a socket's path can be.
    with tempfile.TemporaryDirectory(prefix="blindbox-swtpm-") as folder:
        _manufacture(Path(folder))
        port = _two_free_ports()
        process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"),
                *("--server", f"type=tcp,port={port},bindaddr=127.0.0.1"),
                *("--ctrl", f"type=tcp,port={port + 1},bindaddr=127.0.0.1"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, process)
            yield SoftwareTpm(port, Path(folder))
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def swtpm_behind_a_device() -> Iterator[Path]:
    """
    The same TPM behind a character device: a terminal in raw mode, whose other end swtpm reads.

    A path that is opened, written and polled like /dev/tpmrm0.
    """
    need_swtpm()
    with tempfile.TemporaryDirectory(prefix="blindbox-swtpm-") as folder:
        _manufacture(Path(folder))
        ours, theirs = os.openpty()
        tty.setraw(ours)
        tty.setraw(theirs)
        process = subprocess.Popen(
            [
                *("swtpm", "chardev", "--tpm2", "--tpmstate", f"dir={folder}", "--fd", str(ours)),
                *("--flags", "not-need-init,startup-clear"),
            ],
            pass_fds=[ours],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Path(os.ttyname(theirs))
        finally:
            process.terminate()
            process.wait(60)
            os.close(ours)
            os.close(theirs)


def _two_free_ports() -> int:
    """The lower of two neighbours that are free now."""
    for _ in range(100):
        port = free_port()
        with suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port
    raise RuntimeError("no two neighbouring ports are free")


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError("swtpm did not start")
