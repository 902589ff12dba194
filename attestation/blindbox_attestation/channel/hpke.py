"""
Hybrid Public Key Encryption (RFC 9180), base mode: contexts with a sequence, and export.

`cryptography` brings the primitives, the key schedule on top of them is here. KEMs: DHKEM(X25519,
HKDF-SHA256), and X-Wing (draft-connolly-cfrg-xwing-kem), secret while either of ML-KEM-768 and X25519 holds.
A private key has no export, and whoever holds a context is the only one who does: neither can be copied or
pickled. What the bytes mean is `ohttp.py`'s business.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from ..errors import MalformedMessage, SealingError

X25519: Final = 0x0020
X_WING: Final = 0x647A
KDF_HKDF_SHA256: Final = 0x0001
AEAD_AES_128_GCM: Final = 0x0001
AEAD_AES_256_GCM: Final = 0x0002
AEAD_CHACHA20_POLY1305: Final = 0x0003

TAG_SIZE: Final = 16
"""What every AEAD here adds to a plaintext, in bytes."""

NONCE_SIZE: Final = 12
"""Nn of every AEAD here (RFC 9180 §7.3)."""

_MODE_BASE = b"\x00"
_HASH_SIZE = 32
_SHA256 = SHA256()
_LAST_SEQUENCE = (1 << (8 * NONCE_SIZE)) - 1

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Kem:
    """Sizes of a KEM in bytes (RFC 9180 §7.1, draft-connolly-cfrg-xwing-kem §5.1)."""

    name: str
    private: int
    public: int
    enc: int


KEMS: Final = {
    X25519: Kem("X25519", private=32, public=32, enc=32),
    X_WING: Kem("X-Wing", private=32, public=1216, enc=1120),
}


class _Cipher(Protocol):
    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Aead:
    """An AEAD: the size of its key in bytes (RFC 9180 §7.3), and how to make it."""

    name: str
    key: int
    cipher: Callable[[bytes], _Cipher]


AEADS: Final = {
    AEAD_AES_128_GCM: Aead("AES-128-GCM", 16, AESGCM),
    AEAD_AES_256_GCM: Aead("AES-256-GCM", 32, AESGCM),
    AEAD_CHACHA20_POLY1305: Aead("ChaCha20-Poly1305", 32, ChaCha20Poly1305),
}


class OneOwner:
    """Secret state with exactly one owner: a copy would seal two messages under one nonce."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has one owner: it cannot be copied or pickled")

    __copy__ = __deepcopy__ = __reduce__ = __getstate__ = _refuse
    __reduce_ex__ = _refuse

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Sealer(OneOwner):
    """An AEAD key that seals one message after another, each under a nonce of its own (RFC 9180 §5.2)."""

    __slots__ = ("_base", "_cipher", "_sequence")

    def __init__(self, aead: int, key: bytes, base_nonce: bytes) -> None:
        self._cipher = AEADS[aead].cipher(key)
        self._base = int.from_bytes(base_nonce, "big")
        self._sequence = itertools.count()  # `next` is atomic, so even two threads never share a nonce

    def seal(self, aad: bytes, plaintext: Buffer) -> bytes:
        """Return the ciphertext and tag of the next message."""
        sequence = next(self._sequence)
        if sequence >= _LAST_SEQUENCE:
            raise SealingError("this key has sealed as many messages as it may")
        return self._cipher.encrypt((self._base ^ sequence).to_bytes(NONCE_SIZE, "big"), plaintext, aad)


class Opener(OneOwner):
    """The other end of a `Sealer`: opens its messages in their order, and no others."""

    __slots__ = ("_base", "_cipher", "_sequence")

    def __init__(self, aead: int, key: bytes, base_nonce: bytes) -> None:
        self._cipher = AEADS[aead].cipher(key)
        self._base = int.from_bytes(base_nonce, "big")
        self._sequence = 0

    def open(self, aad: bytes, ciphertext: Buffer) -> bytes:
        """Return the plaintext of the next message; a message that fails leaves the sequence where it was."""
        if self._sequence >= _LAST_SEQUENCE:
            raise SealingError("this key has opened as many messages as it may")
        nonce = (self._base ^ self._sequence).to_bytes(NONCE_SIZE, "big")
        try:
            plaintext = self._cipher.decrypt(nonce, ciphertext, aad)
        except InvalidTag as error:
            raise SealingError("a sealed message was altered, cut short, or meant for another key") from error
        self._sequence += 1
        return plaintext


class _Exports:
    """The half of a context that both ends have."""

    __slots__ = ()

    _exporter: _Exporter

    def export(self, context: bytes, length: int) -> bytes:
        """Return `length` bytes known to both ends, separate for each `context` (RFC 9180 §5.3)."""
        return self._exporter.export(context, length)


class SenderContext(Sealer, _Exports):
    """What a sender holds after `setup_sender` (RFC 9180 §5.2, §5.3)."""

    __slots__ = ("_exporter",)

    def __init__(self, schedule: _Schedule) -> None:
        super().__init__(schedule.aead, schedule.key, schedule.base_nonce)
        self._exporter = schedule.exporter


class RecipientContext(Opener, _Exports):
    """What a recipient holds after `setup_recipient` (RFC 9180 §5.2, §5.3)."""

    __slots__ = ("_exporter",)

    def __init__(self, schedule: _Schedule) -> None:
        super().__init__(schedule.aead, schedule.key, schedule.base_nonce)
        self._exporter = schedule.exporter


class PrivateKey(OneOwner):
    """A recipient's private key. It has no export: what is needed of it happens here."""

    __slots__ = ("_mlkem", "_x25519", "kem", "public_bytes")

    kem: int
    public_bytes: bytes
    _mlkem: MLKEM768PrivateKey | None
    _x25519: X25519PrivateKey

    @classmethod
    def generate(cls, kem: int) -> PrivateKey:
        """Make a new key from the system's randomness."""
        return cls.from_bytes(kem, secrets.token_bytes(_known_kem(kem).private))

    @classmethod
    def from_bytes(cls, kem: int, data: bytes) -> PrivateKey:
        """Take the 32 bytes of an X25519 private key (RFC 7748), or the 32-byte seed of an X-Wing key."""
        sizes = _known_kem(kem)
        if len(data) != sizes.private:
            raise ValueError(f"a private key of {sizes.name} is {sizes.private} bytes, not {len(data)}")
        self = cls.__new__(cls)
        self.kem = kem
        if kem == X_WING:
            # draft-connolly-cfrg-xwing-kem §5.2: SHAKE256(seed, 96) = d ‖ z ‖ sk_X
            expanded = hashlib.shake_256(data).digest(96)
            self._mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
            self._x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
            self.public_bytes = (
                self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
            )
        else:
            self._mlkem = None
            self._x25519 = X25519PrivateKey.from_private_bytes(data)
            self.public_bytes = self._x25519.public_key().public_bytes_raw()
        return self

    def __repr__(self) -> str:
        return f"<PrivateKey {KEMS[self.kem].name} of {hashlib.sha256(self.public_bytes).hexdigest()[:16]}>"

    def _decapsulate(self, enc: bytes) -> bytes:
        """Return the KEM's shared secret; refuse an `enc` of another length or of low order."""
        sizes = KEMS[self.kem]
        if len(enc) != sizes.enc:
            raise MalformedMessage(f"an encapsulation of {sizes.name} is {sizes.enc} bytes, not {len(enc)}")
        if self._mlkem is None:
            shared = _exchange(self._x25519, enc)
            return _dhkem_secret(shared, enc, self.public_bytes)
        ct_m, ct_x = enc[:_MLKEM_CIPHERTEXT], enc[_MLKEM_CIPHERTEXT:]
        ss_m = self._mlkem.decapsulate(ct_m)
        ss_x = _exchange(self._x25519, ct_x)
        return _xwing_secret(ss_m, ss_x, ct_x, self.public_bytes[_MLKEM_PUBLIC:])


def setup_sender(
    kem: int, kdf: int, aead: int, public_key: bytes, info: bytes, *, _ephemeral: bytes | None = None
) -> tuple[bytes, SenderContext]:
    """
    Return (enc, context) for a new message to `public_key`: SetupBaseS of RFC 9180 §5.1.1.

    `_ephemeral` is for published vectors only: the X25519 key that is otherwise made anew each time.
    """
    shared, enc = _encapsulate(kem, public_key, _ephemeral)
    return enc, SenderContext(_schedule(kem, kdf, aead, shared, info))


def setup_recipient(
    private_key: PrivateKey, kdf: int, aead: int, enc: bytes, info: bytes
) -> RecipientContext:
    """Return the context that opens what the sender of `enc` seals: SetupBaseR of RFC 9180 §5.1.1."""
    shared = private_key._decapsulate(enc)
    return RecipientContext(_schedule(private_key.kem, kdf, aead, shared, info))


def extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869 §2.2)."""
    return HKDF.extract(_SHA256, salt, ikm)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 §2.3)."""
    return HKDFExpand(_SHA256, length, info).derive(prk)


# --- the key schedule, RFC 9180 §5.1


class _Exporter(OneOwner):
    __slots__ = ("_secret", "_suite")

    def __init__(self, suite: bytes, secret: bytes) -> None:
        self._suite = suite
        self._secret = secret

    def export(self, context: bytes, length: int) -> bytes:
        return _labeled_expand(self._suite, self._secret, b"sec", context, length)


@dataclass(frozen=True, slots=True, repr=False)
class _Schedule:
    aead: int
    key: bytes
    base_nonce: bytes
    exporter: _Exporter


def _schedule(kem: int, kdf: int, aead: int, shared: bytes, info: bytes) -> _Schedule:
    if kdf != KDF_HKDF_SHA256:
        raise SealingError(f"KDF {kdf:#06x} is not spoken here")
    if aead not in AEADS:
        raise SealingError(f"AEAD {aead:#06x} is not spoken here")
    suite = b"HPKE" + kem.to_bytes(2, "big") + kdf.to_bytes(2, "big") + aead.to_bytes(2, "big")
    context = _context(suite, info)
    secret = _labeled_extract(suite, shared, b"secret", b"")
    return _Schedule(
        aead=aead,
        key=_labeled_expand(suite, secret, b"key", context, AEADS[aead].key),
        base_nonce=_labeled_expand(suite, secret, b"base_nonce", context, NONCE_SIZE),
        exporter=_Exporter(suite, _labeled_expand(suite, secret, b"exp", context, _HASH_SIZE)),
    )


@functools.lru_cache(maxsize=64)
def _context(suite: bytes, info: bytes) -> bytes:
    """The key_schedule_context: nothing secret, and the same for every message to one key."""
    return (
        _MODE_BASE
        + _labeled_extract(suite, b"", b"psk_id_hash", b"")
        + _labeled_extract(suite, b"", b"info_hash", info)
    )


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """RFC 9180 §4."""
    return extract(salt, b"HPKE-v1" + suite + label + ikm)


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """RFC 9180 §4."""
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


# --- the KEMs: RFC 9180 §4.1, draft-connolly-cfrg-xwing-kem §5.3-5.5

_MLKEM_PUBLIC = 1184
_MLKEM_CIPHERTEXT = 1088
_XWING_LABEL = b"\\.//^\\"
_DHKEM_SUITE = b"KEM" + X25519.to_bytes(2, "big")


def _known_kem(kem: int) -> Kem:
    if kem not in KEMS:
        raise SealingError(f"KEM {kem:#06x} is not spoken here")
    return KEMS[kem]


def _encapsulate(kem: int, public_key: bytes, ephemeral: bytes | None) -> tuple[bytes, bytes]:
    """Return the shared secret and its encapsulation; refuse a public key that is not one."""
    sizes = _known_kem(kem)
    if len(public_key) != sizes.public:
        raise MalformedMessage(f"a public key of {sizes.name} is {sizes.public} bytes, not {len(public_key)}")
    # Made anew for every message: one (enc, sequence) pair never seals twice.
    private = X25519PrivateKey.from_private_bytes(secrets.token_bytes(32) if ephemeral is None else ephemeral)
    ct_x = private.public_key().public_bytes_raw()
    if kem == X25519:
        return _dhkem_secret(_exchange(private, public_key), ct_x, public_key), ct_x
    pk_m, pk_x = public_key[:_MLKEM_PUBLIC], public_key[_MLKEM_PUBLIC:]
    ss_m, ct_m = _mlkem_public(pk_m).encapsulate()
    return _xwing_secret(ss_m, _exchange(private, pk_x), ct_x, pk_x), ct_m + ct_x


@functools.lru_cache(maxsize=64)
def _mlkem_public(data: bytes) -> MLKEM768PublicKey:
    """A caller seals many messages to one key; reading it takes as long as encapsulating to it."""
    try:
        return MLKEM768PublicKey.from_public_bytes(data)  # FIPS 203 §7.2: modulus checked
    except ValueError as error:
        raise MalformedMessage("the ML-KEM-768 half of a public key is not one (FIPS 203 §7.2)") from error


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519 that refuses the all-zero secret of a low-order point (RFC 9180 §7.1.4)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SealingError("an X25519 public key is of low order (RFC 9180 §7.1.4)") from error


def _dhkem_secret(dh: bytes, enc: bytes, public_key: bytes) -> bytes:
    """ExtractAndExpand (RFC 9180 §4.1)."""
    prk = _labeled_extract(_DHKEM_SUITE, b"", b"eae_prk", dh)
    return _labeled_expand(_DHKEM_SUITE, prk, b"shared_secret", enc + public_key, _HASH_SIZE)


def _xwing_secret(ss_m: bytes, ss_x: bytes, ct_x: bytes, pk_x: bytes) -> bytes:
    """The combiner (draft-connolly-cfrg-xwing-kem §5.3)."""
    return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + _XWING_LABEL).digest()
