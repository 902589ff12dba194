"""
Tokens of Google's Confidential Space: SPEC §4.6.

The launcher beside the container asks Google's attestation service to look at the VM, and gives back Google's
verdict, signed, with our binding as its nonce. Source: the launcher's TEE server, go-tpm-tools
launcher/teeserver.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from blindbox_attestation import strict_json
from blindbox_attestation.binding import Bound
from blindbox_attestation.evidence import CONFIDENTIAL_SPACE

from . import Quote, QuoteUnavailable
from .local_http import ask

LAUNCHER: Final = Path("/run/container_launcher/teeserver.sock")
MAX_TOKEN: Final = 32 * 1024


class ConfidentialSpaceQuoter:
    """A token for each question. `audience` is whom it is for: the policy's `audience` must say the same."""

    platform = CONFIDENTIAL_SPACE

    def __init__(self, audience: str, launcher: Path = LAUNCHER, *, seconds: float = 30.0) -> None:
        self._audience = audience
        self._launcher = launcher
        self._seconds = seconds

    def check(self) -> None:
        """Raise now, with a reason, if this machine cannot answer."""
        if not self._launcher.is_socket():
            raise QuoteUnavailable(
                f"no launcher at {self._launcher}: a container in Google's Confidential Space is needed"
            )

    def quote(self, bound: Bound) -> Quote:
        """A token whose eat_nonce is B, and whose certificates come with it (type PKI)."""
        nonce = base64.urlsafe_b64encode(bound.digest).rstrip(b"=").decode("ascii")
        question = {"audience": self._audience, "token_type": "PKI", "nonces": [nonce]}
        token = ask(
            self._launcher,
            "POST",
            "/v1/token",
            body=strict_json.dump(question),
            headers={"Content-Type": "application/json"},
            seconds=self._seconds,
            most=MAX_TOKEN,
        ).strip()
        if token.count(b".") != 2:
            raise QuoteUnavailable("the launcher's answer is no token")
        return Quote(token)
