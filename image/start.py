"""The image's first process: cleans the environment and becomes the app.

What an operator may say after the image was measured is an allow-list: `BLINDBOX_*` passes, and the app's
settings judge each name and value.  Everything else, `LD_*`, `PYTHON*`, `HF_*`, `*_PROXY` and what nobody
has thought of yet, is left behind.  A settings file, as a virtual machine has one, counts before the
environment, and whatever is wrong in it stops the start.  `python -I start.py` replaces itself by
`python -I -m enclave_app`.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from enclave_app import settings_file
from enclave_app.settings import MALLOC_TUNABLES, InvalidSettings

EX_CONFIG = 78  # sysexits.h


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment the app gets: fixed values, and the operator's settings.

    An empty value counts as a variable that nobody set.  GLIBC_TUNABLES is read when a process starts, so
    it is set before the app does: large tensors stay mapped, and training is almost twice as fast.
    """
    fixed = {
        "PATH": "/opt/blindbox/bin:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/var/lib/blindbox",
        "GLIBC_TUNABLES": MALLOC_TUNABLES,
    }
    said = {name: value for name, value in environ.items() if name.startswith("BLINDBOX_") and value}
    return {**said, **fixed}


def refuse_closed_port(host: str, port: str) -> None:
    """Says what to do where an ordinary user may not listen on port 80."""
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        return  # the app's settings say what is wrong with it
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno != errno.EACCES:
                return
            print(
                f"not started: port {port} is closed to users here. Either\n"
                "  podman run --sysctl net.ipv4.ip_unprivileged_port_start=0 …  (Docker's default), or\n"
                "  run with -e BLINDBOX_PORT=8080 and publish that port.",
                file=sys.stderr,
            )
            sys.exit(EX_CONFIG)


def told(place: Path) -> dict[str, str]:
    """What the settings file says, if there is one."""
    try:
        return settings_file.read(place.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSettings(f"the settings in {place} cannot be read: {error.strerror}") from error


def main() -> None:
    """Never returns."""
    try:
        environment = clean({**os.environ, **told(settings_file.PLACE)})
    except InvalidSettings as error:
        print(f"not started: {error}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    refuse_closed_port(environment.get("BLINDBOX_HOST", ""), environment.get("BLINDBOX_PORT", "80"))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    os.execve(sys.executable, [sys.executable, "-I", "-m", "enclave_app"], environment)  # noqa: S606


if __name__ == "__main__":
    main()
