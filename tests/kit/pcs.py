"""
A stand-in for Intel's provisioning certification service, or for a caching one (PCCS), on loopback: PCS
API, version 4.

It serves collateral in the nine-string form of SPEC §4.3, real or of a fake Intel, taken apart as the
service has it: signed JSON in an envelope, issuer chains URL-encoded in headers, lists in DER (the root's
in hexadecimal, as a PCCS does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlsplit

from tests.kit.kds import Instead, PublishingService
from tests.kit.relay import Asked, Reply, http_reply

TDX = "/tdx/certification/v4"
SGX = "/sgx/certification/v4"


class ProvisioningService(PublishingService):
    """What Intel publishes about one kind of platform, whose PCK authority is `authority`."""

    def __init__(
        self, collateral: Mapping[str, str], *, authority: str = "platform", instead: Instead | None = None
    ) -> None:
        self.collateral = dict(collateral)
        self.authority = authority
        self.fmspc = str(json.loads(self.collateral["tcb_info"])["fmspc"]).upper()
        super().__init__(instead)

    def publish(self, asked: Asked) -> Reply | None:
        parts = urlsplit(asked.target)
        query = dict(parse_qsl(parts.query))
        told = self.collateral
        match parts.path:
            case "/tdx/certification/v4/tcb" if query == {"fmspc": self.fmspc, "update": "standard"}:
                return _signed("tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain", told)
            case "/tdx/certification/v4/qe/identity" if query == {"update": "standard"}:
                return _signed("enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain", told)
            case "/sgx/certification/v4/pckcrl" if query == {"ca": self.authority, "encoding": "der"}:
                chain = _chain("SGX-PCK-CRL-Issuer-Chain", told["pck_crl_issuer_chain"])
                return http_reply(200, "application/pkix-crl", bytes.fromhex(told["pck_crl"]), more=chain)
            case "/sgx/certification/v4/rootcacrl" if not query:
                return http_reply(200, "text/plain", told["root_ca_crl"].encode())
        return None


def _signed(key: str, name: str, header: str, told: Mapping[str, str]) -> Reply:
    body = f'{{"{key}":{told[name]},"signature":"{told[f"{name}_signature"]}"}}'
    more = _chain(header, told[f"{name}_issuer_chain"])
    return http_reply(200, "application/json", body.encode(), more=more)


def _chain(header: str, pem: str) -> str:
    return f"{header}: {quote(pem)}\r\n"
