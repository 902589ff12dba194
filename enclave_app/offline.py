"""
What libraries are told through the environment before they are imported: no hub, no reports, no chatter.

It is set in this process and in those it starts. Nothing is imported here, for they should start quickly.
"""

from __future__ import annotations

from collections.abc import MutableMapping


def keep_from_hub(environ: MutableMapping[str, str]) -> None:
    """Tell the libraries that there is no hub and nobody to report to."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        environ[name] = "1"
    quiet(environ)


def quiet(environ: MutableMapping[str, str]) -> None:
    """No telemetry, no progress bars, no chatter: what libraries say may hold what they process (S-20)."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        environ[name] = "1"
    environ["TRANSFORMERS_VERBOSITY"] = environ["DATASETS_VERBOSITY"] = "critical"
    environ["HF_HUB_VERBOSITY"] = "critical"
    environ["TQDM_DISABLE"] = "1"
    environ["TOKENIZERS_PARALLELISM"] = "false"
