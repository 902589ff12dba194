"""
Makes `blindbox_attestation/development_chain.py` anew: `python -m tests.kit.development_chain > THAT FILE`.

The root's and the intermediate's private keys are thrown away. The chip's is written into the file, on
purpose.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
import textwrap
from base64 import b64encode
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from blindbox_attestation.snp.tcb import Tcb
from tests.kit.amd import FakeAmd

HEAD = '''"""
The development chain of simulated evidence: an AMD-shaped root, intermediate, chip certificate and revocation
list.

Data, made by `tests/kit/development_chain.py`. The chip's private key is here for everybody to use, so
nothing that it signs proves anything; the private keys above it were thrown away. Only
`UnsafeSimulatedPolicy` names this root.
"""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256
from typing import Final
'''


def main() -> None:
    amd = FakeAmd("Genoa", name="BlindBox development, proves nothing")
    scalar = secrets.randbits(376) | 1
    amd.tcb = Tcb(bootloader=1, snp=1, microcode=1)
    amd.hwid = hashlib.sha512(b"blindbox/simulated/chip").digest()
    amd.chip_key = ec.derive_private_key(scalar, ec.SECP384R1())
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2123, 12, 31, tzinfo=UTC)
    out = [HEAD]
    for what in ("ark", "ask", "vcek", "crl"):
        if what == "crl":
            der = amd.crl(this_update=start, next_update=end)
        else:
            der = amd.certificate(what, not_before=start, not_after=end)
        lines = textwrap.wrap(b64encode(der).decode(), 100)
        out.append(
            f"{what.upper()}: Final = b64decode(\n" + "\n".join(f'    "{line}"' for line in lines) + "\n)\n"
        )
    out.append(
        f'CHIP_ID: Final = bytes.fromhex(\n    "{amd.hwid[:32].hex()}"\n    "{amd.hwid[32:].hex()}"\n)\n'
    )
    out.append(f'PUBLIC_PRIVATE_KEY: Final = int(\n    "{scalar:x}", 16\n)\n')
    out.append(
        'DEVELOPMENT_ROOT: Final = sha256(ARK).digest()\n"""The fingerprint that no `Policy` may hold."""\n'
    )
    sys.stdout.write("\n".join(out))


if __name__ == "__main__":
    main()
