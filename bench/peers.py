"""
Other verifiers, each in a process of its own: `verify.py` hands it a case and asks for rounds, in lines of
JSON.

Whatever a peer would fetch from a vendor is handed to it here, as it is to us, so that no network is
measured. None of them keeps anything between calls. One that is not installed, or refuses the case, says so
in a line, and is named as absent in the table.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "peers"
Files = dict[str, bytes]
Judge = Callable[[], Any]


# --- in verify.py -------------------------------------------------------------------------------------------


class Peer:
    """One peer and one case, ready to be measured, or `absent`."""

    def __init__(self, name: str, files: Files, now: int) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        told = {key: base64.b64encode(value).decode("ascii") for key, value in files.items()}
        self.absent: str = self._ask({"peer": name, "now": now, "files": told})["absent"]

    def round(self, calls: int) -> float:
        """The median of so many calls, in ms."""
        return float(self._ask({"calls": calls})["ms"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"absent": "it ended"}')
        return answer


def median_of(judge: Judge, calls: int, before: Callable[[], object] = lambda: None) -> float:
    """
    In ms of this thread's processor time: nobody waits for anything here, and what other programs do
    meanwhile is not ours. What is done `before` a call is not counted.
    """
    taken: list[float] = []
    for _ in range(calls):
        before()
        start = time.thread_time()
        judge()
        taken.append(time.thread_time() - start)
    return 1000 * statistics.median(taken)


# --- in a process of its own --------------------------------------------------------------------------------


def dcap_qvl(files: Files, now: int, *, collateral_is_read: bool = True) -> Judge:
    from dcap_qvl import QuoteCollateralV3, verify

    quote, text = files["evidence"], files["collateral"].decode("ascii")
    if not collateral_is_read:
        return lambda: verify(quote, QuoteCollateralV3.from_json(text), now)
    collateral = QuoteCollateralV3.from_json(text)
    return lambda: verify(quote, collateral, now)


def tinfoil(files: Files, now: int) -> Judge:
    for name in ("tinfoil", "tinfoil.attestation"):  # their own __init__ would import a chat client
        package = types.ModuleType(name)
        package.__path__ = [str(FOLDER / name.replace(".", "/"))]
        sys.modules[name] = package
    own = importlib.import_module("tinfoil.attestation.attestation_sev")
    lowest = own.TCBParts(bl_spl=10, tee_spl=0, snp_spl=0x1B, ucode_spl=0x1B)  # as in our policy
    options = dataclasses.replace(
        own.default_validation_options, minimum_tcb=lowest, minimum_launch_tcb=lowest, platform_info=None
    )

    def judge() -> None:
        """`verify_sev_report`, but for the family, which it does not know by this Genoa's model."""
        report = own.Report(files["evidence"])
        report.productName = "Genoa"
        chain = own.CertificateChain.from_report(report, vcek_der=files["vcek"])
        if not own.verify_attestation(chain, report):
            raise ValueError("its signatures")
        own.validate_report(report, chain, options)

    return judge


def dk_tee_attestation(files: Files, now: int) -> Judge:
    return _dk_tdx(files) if "collateral" in files else _dk_snp(files)


def _dk_snp(files: Files) -> Judge:
    from cryptography import x509

    own = importlib.import_module("dk_tee_attestation.amd_sev_snp_attestation_report_verification_utils")
    verifier, report = own.AmdSevSnpVerifier, files["evidence"]
    verifier._request_cert_chain = staticmethod(
        lambda family: tuple(x509.load_der_x509_certificate(files[name]) for name in ("ark", "ask"))
    )
    verifier._request_vcek = staticmethod(lambda *about: x509.load_der_x509_certificate(files["vcek"]))
    return lambda: verifier.verify_amd_sev_snp_attestation_report(report, report[0x50:0x90])


def _dk_tdx(files: Files) -> Judge:
    own = importlib.import_module("dk_tee_attestation.intel_tdx_attestation_report_verification_utils")
    verifier, quote = own.IntelTdxVerifier, files["evidence"]
    told = json.loads(files["collateral"])

    def part(name: str) -> tuple[bytes, bytes, bytes]:
        return (
            told[name].encode("ascii"),
            bytes.fromhex(told[f"{name}_signature"]),
            told[f"{name}_issuer_chain"].encode("ascii"),
        )

    verifier._request_tcb_info = staticmethod(lambda fmspc: part("tcb_info"))
    verifier._request_qe_identity = staticmethod(lambda: part("qe_identity"))
    return lambda: verifier.verify_intel_tdx_attestation_report(quote, quote[568:632])


PEERS: dict[str, Callable[[Files, int], Judge]] = {
    "dcap-qvl": dcap_qvl,
    "dcap-qvl + JSON": lambda files, now: dcap_qvl(files, now, collateral_is_read=False),
    "tinfoil": tinfoil,
    "dk-tee-attestation": dk_tee_attestation,
}


def _prepare(name: str, files: Files, now: int) -> tuple[Judge | None, str]:
    """The peer, once it has accepted the case; or why it is absent."""
    try:
        judge = PEERS[name](files, now)
        judge()
    except ImportError as error:
        return None, f"not installed ({error.name})"
    except Exception as error:
        return None, f"refuses it: {' '.join(str(error).split())[:100]}"
    return judge, ""


def main() -> int:
    warnings.simplefilter("ignore")
    sys.path.append(str(FOLDER))
    answers = sys.stdout
    first = json.loads(sys.stdin.readline())
    files = {name: base64.b64decode(value) for name, value in first["files"].items()}
    with contextlib.redirect_stdout(io.StringIO()):  # some of them print
        judge, absent = _prepare(first["peer"], files, first["now"])
    print(json.dumps({"absent": absent}), file=answers, flush=True)
    for line in sys.stdin:
        assert judge is not None
        with contextlib.redirect_stdout(io.StringIO()):
            taken = median_of(judge, json.loads(line)["calls"])
        print(json.dumps({"ms": taken}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
