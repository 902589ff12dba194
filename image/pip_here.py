"""Lets the build use pip as this machine uses it: its indexes, its folders of wheels, its CA bundle.

    python3 pip_here.py FOLDER

writes FOLDER/pip.conf out of `pip config list` and prints the buildah options, one a line, that show it
and the folders it names to the build.  They are mounts: nothing of it stays in a layer.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

CA_IN_IMAGE = "/etc/ssl/certs/ca-certificates.crt"
LISTS = frozenset({"extra-index-url", "find-links", "trusted-host"})
COPIED = LISTS | {"index-url", "proxy", "timeout", "default-timeout", "cert"}
SECTIONS = ("global", "install", ":env:")  # a later one wins, as in pip


def configured() -> dict[str, list[str]]:
    """What pip is told here, by option; nothing where there is no pip."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(pip, check=False, capture_output=True, text=True).stdout  # noqa: S603
    found: dict[str, list[str]] = {}
    for section in SECTIONS:
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            option = key.removeprefix(f"{section}.")
            if option == key or option not in COPIED:
                continue
            words = str(ast.literal_eval(value)).split()
            found[option] = list(dict.fromkeys(found.get(option, []) + words)) if option in LISTS else words
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(variable):
            found.setdefault("cert", [os.environ[variable]])
    return found


def local_folders(places: list[str]) -> Iterator[Path]:
    """The folders of this machine among pip's places; of an index its parent, where its links lead."""
    for place in places:
        url = urlsplit(place)
        folder = Path(unquote(url.path)).parent if url.scheme == "file" else Path(place)
        if folder.is_dir() and folder.is_absolute():
            yield folder


def main(folder: Path) -> None:
    """Writes the file, prints the mounts."""
    options = configured()
    places = options.get("find-links", []) + options.get("extra-index-url", []) + options.get("index-url", [])
    mounts = [(str(place), str(place)) for place in dict.fromkeys(local_folders(places))]
    if "cert" in options:
        mounts.append((options["cert"][0], CA_IN_IMAGE))
        options["cert"] = [CA_IN_IMAGE]
    lines = [f"{option} = {' '.join(words)}" for option, words in options.items()]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    mounts.append((str(folder / "pip.conf"), "/etc/pip.conf"))
    for here, inside in mounts:
        print(f"--volume={here}:{inside}:ro")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
