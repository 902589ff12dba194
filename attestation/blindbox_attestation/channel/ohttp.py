"""
Oblivious HTTP (RFC 9458) and Chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08): the sealed message.

Bytes go in and bytes come out; what they say is `bhttp.py`'s business, and whose key this is was settled
before, by `verify`. An opener gives out only what has been authenticated, and a message is whole only once
`close` says so: in the chunked form the last chunk is marked as the last under its tag, so that a cut answer
is no answer.

    client                                         enclave
    RequestSealer.seal ─────── request ──────────► RequestOpener.feed, .close
    ResponseOpener.feed, .close ◄── response ───── ResponseSealer.seal
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import MalformedMessage, SealingError, TruncatedMessage
from . import hpke, varint
from .hpke import (
    AEAD_AES_128_GCM,
    AEAD_AES_256_GCM,
    AEADS,
    KDF_HKDF_SHA256,
    KEMS,
    NONCE_SIZE,
    TAG_SIZE,
    X25519,
    X_WING,
    OneOwner,
    Opener,
    PrivateKey,
    Sealer,
)

KEYS: Final = "application/ohttp-keys"
REQUEST: Final = "message/ohttp-req"
RESPONSE: Final = "message/ohttp-res"
CHUNKED_REQUEST: Final = "message/ohttp-chunked-req"
CHUNKED_RESPONSE: Final = "message/ohttp-chunked-res"

MAX_CHUNK: Final = 16384
"""Most bytes of plaintext in one chunk (SPEC.md §5.2)."""

SUITES: Final = ((KDF_HKDF_SHA256, AEAD_AES_256_GCM), (KDF_HKDF_SHA256, AEAD_AES_128_GCM))
"""The (KDF, AEAD) pairs of profile 1, the preferred one first (SPEC.md §5.1)."""

_KEM_PREFERENCE = (X_WING, X25519)
_HEADER = 7  # key id (1), KEM, KDF, AEAD (2 each): RFC 9458 §4.1
_FINAL = b"final"
_MAX_SEALED_CHUNK = MAX_CHUNK + TAG_SIZE

Admit = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class _Form:
    """The labels of the plain and of the chunked form (RFC 9458 §4.3-4.4; the draft, §6)."""

    request: bytes
    response: bytes


_PLAIN = _Form(request=b"message/bhttp request", response=b"message/bhttp response")
_CHUNKED = _Form(request=b"message/bhttp chunked request", response=b"message/bhttp chunked response")


# --- key configurations, RFC 9458 §3


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """A gateway's public key and the (KDF, AEAD) pairs it may be used with (RFC 9458 §3.1)."""

    key_id: int
    kem: int
    public_key: bytes
    suites: tuple[tuple[int, int], ...] = SUITES

    def __post_init__(self) -> None:
        if not 0 <= self.key_id <= 255:
            raise MalformedMessage(f"a key id is one byte, not {self.key_id}")
        if self.kem not in KEMS:
            raise MalformedMessage(f"KEM {self.kem:#06x} is not spoken here")
        sizes = KEMS[self.kem]
        if len(self.public_key) != sizes.public:
            raise MalformedMessage(
                f"a public key of {sizes.name} is {sizes.public} bytes, not {len(self.public_key)}"
            )
        if not self.suites or len(set(self.suites)) != len(self.suites):
            raise MalformedMessage("a key configuration lists at least one suite, and each once")
        if any(not 0 <= part <= 0xFFFF for suite in self.suites for part in suite):
            raise MalformedMessage("the KDF and the AEAD of a suite are two bytes each")

    def encode(self) -> bytes:
        """Return the bytes of one configuration, without the length that precedes it in a list."""
        suites = b"".join(kdf.to_bytes(2, "big") + aead.to_bytes(2, "big") for kdf, aead in self.suites)
        return (
            self.key_id.to_bytes(1, "big")
            + self.kem.to_bytes(2, "big")
            + self.public_key
            + len(suites).to_bytes(2, "big")
            + suites
        )

    @classmethod
    def parse(cls, data: bytes) -> KeyConfig:
        """Read what `encode` writes, all of it and nothing more."""
        if len(data) < 3:
            raise MalformedMessage(f"a key configuration of {len(data)} bytes is too short")
        kem = int.from_bytes(data[1:3], "big")
        if kem not in KEMS:
            raise MalformedMessage(f"KEM {kem:#06x} is not spoken here")
        key_end = 3 + KEMS[kem].public
        suites = data[key_end + 2 :]
        if len(data) < key_end + 2 or int.from_bytes(data[key_end : key_end + 2], "big") != len(suites):
            raise MalformedMessage("the length of a key configuration's suites does not fit its bytes")
        if len(suites) % 4:
            raise MalformedMessage("the suites of a key configuration are four bytes each")
        pairs = (
            (int.from_bytes(suites[at : at + 2], "big"), int.from_bytes(suites[at + 2 : at + 4], "big"))
            for at in range(0, len(suites), 4)
        )
        return cls(data[0], kem, data[3:key_end], tuple(pairs))


def encode_key_configs(configs: Iterable[KeyConfig]) -> bytes:
    """Return an `application/ohttp-keys` list, each configuration after its length (RFC 9458 §3.2)."""
    encoded = [config.encode() for config in configs]
    return b"".join(len(one).to_bytes(2, "big") + one for one in encoded)


def parse_key_configs(data: bytes) -> tuple[KeyConfig, ...]:
    """Read an `application/ohttp-keys` list: at least one, no id twice, no bytes left over."""
    configs: list[KeyConfig] = []
    position = 0
    while position < len(data):
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        if start > len(data) or position > len(data):
            raise MalformedMessage("a list of key configurations ends in the middle of one")
        configs.append(KeyConfig.parse(data[start:position]))
    if not configs:
        raise MalformedMessage("a list of key configurations is empty")
    if len({config.key_id for config in configs}) != len(configs):
        raise MalformedMessage("a list of key configurations uses a key id twice")
    return tuple(configs)


def preferred(configs: Iterable[KeyConfig]) -> KeyConfig:
    """Choose a configuration: X-Wing, then X25519, among those with a suite we speak (SPEC.md §5.1)."""
    usable = [config for config in configs if any(suite in config.suites for suite in SUITES)]
    if not usable:
        raise SealingError("none of the key configurations has a suite that is spoken here")
    return min(usable, key=lambda config: _KEM_PREFERENCE.index(config.kem))


# --- a sequence of chunks, the same in both directions: the draft, §4-6


class _Writer(OneOwner):
    """Seals the pieces of one message; knows nothing of what precedes them."""

    __slots__ = ("_chunked", "_prefix", "_sealer", "finished")

    def __init__(self, prefix: bytes, sealer: Sealer, *, chunked: bool) -> None:
        self._prefix = prefix  # what goes before the first chunk; sent with the first output
        self._sealer = sealer
        self._chunked = chunked
        self.finished = False

    def seal(self, data: hpke.Buffer, *, final: bool) -> bytes:
        if self.finished:
            raise SealingError("this message has already been sealed to its end")
        if not (self._chunked or final):
            raise SealingError("a message that is not chunked is sealed in one piece")
        self.finished = final
        prefix, self._prefix = self._prefix, b""
        if not self._chunked:
            return prefix + self._sealer.seal(b"", data)
        out = [prefix]
        with memoryview(data) as view:
            size = len(view)
            # A final call keeps its last bytes, at most a full chunk, for the final chunk.
            start = 0
            while size - start > (MAX_CHUNK if final else 0):
                with view[start : start + MAX_CHUNK] as piece:
                    sealed = self._sealer.seal(b"", piece)
                out += (varint.encode(len(sealed)), sealed)
                start += MAX_CHUNK
            if final:
                with view[start:] as piece:
                    out += (b"\x00", self._sealer.seal(_FINAL, piece))
        return b"".join(out)


class _Reader(OneOwner):
    """Opens the chunks of one message as their bytes come in."""

    __slots__ = ("_chunked", "_ending", "_failure", "_opener", "_waiting", "finished")

    def __init__(self, opener: Opener, *, chunked: bool) -> None:
        self._opener = opener
        self._chunked = chunked
        self._waiting = bytearray()
        self._ending = False  # the final chunk has begun: it reaches to the end of the input
        self._failure: SealingError | None = None  # raised at the next step
        self.finished = False

    def feed(self, data: hpke.Buffer) -> list[bytes]:
        """Return the plaintext of each chunk that `data` completes."""
        if self._failure is not None:
            raise self._failure
        opened: list[bytes] = []
        try:
            self._feed(data, opened)
        except SealingError as error:
            if not opened:
                raise
            # What precedes it is authentic and goes out first, so that how the network cuts the bytes
            # does not change what is seen.
            self._failure = error
        return opened

    def _feed(self, data: hpke.Buffer, opened: list[bytes]) -> None:
        if not self._chunked or self._ending:
            self._wait_for_more(data)
        elif self._waiting:
            self._waiting += data
            with memoryview(self._waiting) as view:
                position = self._open_chunks(view, opened)
            del self._waiting[:position]
            self._wait_for_more(b"")
        else:
            with memoryview(data) as view:  # whole chunks are opened where they lie
                position = self._open_chunks(view, opened)
                with view[position:] as rest:
                    self._wait_for_more(rest)

    def _open_chunks(self, view: memoryview, opened: list[bytes]) -> int:
        """Open every whole chunk that is not the final one; return where they end."""
        position = 0
        while (length := varint.read(view, position)) is not None:
            size, start = length
            if size == 0:
                self._ending = True
                return start
            self._check_size(size)
            if len(view) - start < size:
                break
            with view[start : start + size] as sealed:
                opened.append(self._opener.open(b"", sealed))
            position = start + size
        return position

    def _wait_for_more(self, data: hpke.Buffer) -> None:
        self._waiting += data
        if self._ending and len(self._waiting) > _MAX_SEALED_CHUNK:
            raise MalformedMessage(f"a final chunk is longer than {_MAX_SEALED_CHUNK} bytes")

    def close(self) -> list[bytes]:
        """Return the last plaintext, or raise: the message ended without being whole."""
        if self._failure is not None:
            raise self._failure
        sealed = bytes(self._waiting)
        self._waiting.clear()
        if self._chunked and not self._ending:
            raise TruncatedMessage("the message ended before its final chunk")
        if len(sealed) < TAG_SIZE:
            raise TruncatedMessage("the message ended within its last tag")
        if not self._chunked:
            opened = self._opener.open(b"", sealed)
        else:
            try:
                opened = self._opener.open(_FINAL, sealed)
            except SealingError as error:
                # Cut, altered or continued: from here these look alike. There was no authenticated end.
                raise TruncatedMessage("the message ended without an authenticated final chunk") from error
        self.finished = True
        return [opened] if opened else []

    @staticmethod
    def _check_size(size: int) -> None:
        if size <= TAG_SIZE:
            raise MalformedMessage("a chunk other than the final one is empty")
        if size > _MAX_SEALED_CHUNK:
            raise MalformedMessage(
                f"a chunk of {size} bytes is announced, at most {_MAX_SEALED_CHUNK} are read"
            )


# --- requests, RFC 9458 §4.3


class RequestSealer(OneOwner):
    """
    The client's end of one exchange: seals a request and opens its answer.

    `suite` is a (KDF, AEAD) that `config` lists; by default the first of `SUITES` that it lists.
    """

    __slots__ = ("_answered", "_chunked", "_context", "_enc", "_suite", "_writer", "replay_id")

    def __init__(
        self,
        config: KeyConfig,
        *,
        chunked: bool = True,
        suite: tuple[int, int] | None = None,
        _ephemeral: bytes | None = None,
    ) -> None:
        chosen = suite if suite is not None else next((one for one in SUITES if one in config.suites), None)
        if chosen is None or chosen not in config.suites:
            raise SealingError("the key configuration does not list a suite that is spoken here")
        kdf, aead = chosen
        header = (
            config.key_id.to_bytes(1, "big")
            + config.kem.to_bytes(2, "big")
            + kdf.to_bytes(2, "big")
            + aead.to_bytes(2, "big")
        )
        form = _CHUNKED if chunked else _PLAIN
        self._enc, self._context = hpke.setup_sender(
            config.kem, kdf, aead, config.public_key, form.request + b"\x00" + header, _ephemeral=_ephemeral
        )
        self._suite = chosen
        self._chunked = chunked
        self._writer = _Writer(header + self._enc, self._context, chunked=chunked)
        self._answered = False
        self.replay_id: Final = hashlib.sha256(header + self._enc).digest()

    def seal(self, data: hpke.Buffer, *, final: bool = False) -> bytes:
        """
        Return the next bytes of the sealed request; the first begin with header and encapsulated key.

        Chunked: any number of calls, the last with `final`; more than `MAX_CHUNK` becomes several chunks.
        Otherwise: one call, `final`, with the whole message.
        """
        return self._writer.seal(data, final=final)

    def response_opener(self) -> ResponseOpener:
        """Return the opener of the one answer to this request (RFC 9458 §4.4)."""
        if self._answered:
            raise SealingError("a request has one answer: its opener has already been given out")
        self._answered = True
        secret = _response_secret(self._context, self._suite, chunked=self._chunked)
        return ResponseOpener(self._enc, secret, self._suite[1], chunked=self._chunked)


class RequestOpener(OneOwner):
    """
    The enclave's end of one exchange: opens a request and seals its answer.

    `keys` are the live private keys by key id. `admit(key_id, replay_id)` is called once, when the first
    piece has been authenticated and before it is given out; by raising it refuses the request (SPEC.md §5.4).
    After an error the opener stays closed, but an admitted request can still be answered.
    """

    __slots__ = (
        "_admit",
        "_admitted",
        "_answered",
        "_chunked",
        "_context",
        "_enc",
        "_keys",
        "_open",
        "_reader",
        "_start",
        "_suite",
        "_suites",
        "key_id",
        "replay_id",
    )

    key_id: int | None
    """Which key the request is sealed to, once its header has been read."""

    replay_id: bytes | None
    """SHA-256(header ‖ enc), once both have been read."""

    def __init__(
        self,
        keys: Mapping[int, PrivateKey],
        *,
        chunked: bool,
        suites: Collection[tuple[int, int]] = SUITES,
        admit: Admit | None = None,
    ) -> None:
        self._keys = keys
        self._chunked = chunked
        self._suites = suites
        self._admit = admit
        self._start = bytearray()  # header and enc, until both are there
        self._reader: _Reader | None = None
        self._context: hpke.RecipientContext | None = None
        self._enc = b""
        self._suite = (0, 0)
        self._open = True
        self._admitted = False
        self._answered = False
        self.key_id = None
        self.replay_id = None

    @property
    def finished(self) -> bool:
        """Whether the request has been read to its authenticated end."""
        return self._reader is not None and self._reader.finished

    def feed(self, data: hpke.Buffer) -> list[bytes]:
        """Return the plaintext of each chunk that `data` completes (none, before `close`, if not chunked)."""
        self._begin_step()
        opened: list[bytes] = []
        with memoryview(data) as view:
            used = self._read_start(view) if self._reader is None else 0
            if self._reader is not None:
                with view[used:] as rest:
                    opened = self._reader.feed(rest)
        if opened:
            self._let_in()
        self._open = True
        return opened

    def close(self) -> list[bytes]:
        """Say that the input has ended; return the last plaintext, or raise if the request is not whole."""
        self._begin_step()
        if self._reader is None:
            raise TruncatedMessage("the message ended within its header")
        opened = self._reader.close()
        self._let_in()
        return opened

    def response_sealer(self, *, _nonce: bytes | None = None) -> ResponseSealer:
        """Return the sealer of the one answer to this request (RFC 9458 §4.4)."""
        if self._context is None or not self._admitted:
            raise SealingError("a request is answered only after it has been opened")
        if self._answered:
            raise SealingError("a request has one answer: its sealer has already been given out")
        self._answered = True
        secret = _response_secret(self._context, self._suite, chunked=self._chunked)
        return ResponseSealer(self._enc, secret, self._suite[1], chunked=self._chunked, _nonce=_nonce)

    def _begin_step(self) -> None:
        if not self._open:
            raise SealingError("this message has already ended, or failed")
        self._open = False  # until the step has succeeded

    def _let_in(self) -> None:
        """The first piece is authentic: ask once whether this request may come in."""
        if not self._admitted:
            if self._admit is not None and self.key_id is not None and self.replay_id is not None:
                self._admit(self.key_id, self.replay_id)
            self._admitted = True

    def _read_start(self, view: memoryview) -> int:
        """Read header and enc, and set up the context once both are there; return how much was used."""
        used = self._take(view, 0, _HEADER)
        start = self._start
        if len(start) < _HEADER:
            return used
        key_id, kem = start[0], int.from_bytes(start[1:3], "big")
        self._suite = (int.from_bytes(start[3:5], "big"), int.from_bytes(start[5:7], "big"))
        self.key_id = key_id
        key = self._keys.get(key_id)
        if key is None or key.kem != kem:
            raise SealingError(
                f"the request is sealed to a key that is not here (id {key_id}, KEM {kem:#06x})"
            )
        if self._suite not in self._suites:
            raise SealingError("the request uses a suite that the key configuration does not list")
        end = _HEADER + KEMS[kem].enc
        used = self._take(view, used, end)
        if len(start) < end:
            return used
        header, self._enc = bytes(start[:_HEADER]), bytes(start[_HEADER:])
        self.replay_id = hashlib.sha256(header + self._enc).digest()
        form = _CHUNKED if self._chunked else _PLAIN
        kdf, aead = self._suite
        self._context = hpke.setup_recipient(key, kdf, aead, self._enc, form.request + b"\x00" + header)
        self._reader = _Reader(self._context, chunked=self._chunked)
        self._keys = {}  # they have done their work, and may have to go before this request has
        return used

    def _take(self, view: memoryview, used: int, size: int) -> int:
        """Bring what has been read of the start towards `size` bytes; return how much of `view` is used."""
        more = max(0, size - len(self._start))
        self._start += view[used : used + more]
        return min(len(view), used + more)


# --- responses, RFC 9458 §4.4


def _response_secret(
    context: hpke.SenderContext | hpke.RecipientContext, suite: tuple[int, int], *, chunked: bool
) -> bytes:
    form = _CHUNKED if chunked else _PLAIN
    return context.export(form.response, _entropy(suite[1]))


def _entropy(aead: int) -> int:
    """max(Nn, Nk): the length of the response nonce and of the exported secret, in bytes."""
    return max(NONCE_SIZE, AEADS[aead].key)


def _response_key(enc: bytes, nonce: bytes, secret: bytes, aead: int) -> tuple[int, bytes, bytes]:
    """Return AEAD, key and nonce of an answer; they depend on its request (`enc`) and its own `nonce`."""
    prk = hpke.extract(enc + nonce, secret)
    return aead, hpke.expand(prk, b"key", AEADS[aead].key), hpke.expand(prk, b"nonce", NONCE_SIZE)


class ResponseSealer(OneOwner):
    """Seals the answer to one request; made by `RequestOpener.response_sealer`."""

    __slots__ = ("_writer",)

    def __init__(
        self, enc: bytes, secret: bytes, aead: int, *, chunked: bool, _nonce: bytes | None = None
    ) -> None:
        nonce = secrets.token_bytes(_entropy(aead)) if _nonce is None else _nonce
        self._writer = _Writer(nonce, Sealer(*_response_key(enc, nonce, secret, aead)), chunked=chunked)

    def seal(self, data: hpke.Buffer, *, final: bool = False) -> bytes:
        """Return the next bytes of the sealed answer; called as `RequestSealer.seal` is."""
        return self._writer.seal(data, final=final)


class ResponseOpener(OneOwner):
    """Opens the answer to one request; made by `RequestSealer.response_opener`."""

    __slots__ = ("_aead", "_chunked", "_enc", "_nonce", "_open", "_reader", "_secret")

    def __init__(self, enc: bytes, secret: bytes, aead: int, *, chunked: bool) -> None:
        self._enc = enc
        self._secret = secret
        self._aead = aead
        self._chunked = chunked
        self._nonce = bytearray()  # until all of it is there
        self._reader: _Reader | None = None
        self._open = True

    @property
    def finished(self) -> bool:
        """Whether the answer has been read to its authenticated end."""
        return self._reader is not None and self._reader.finished

    def feed(self, data: hpke.Buffer) -> list[bytes]:
        """Return the plaintext of each chunk that `data` completes (none, before `close`, if not chunked)."""
        self._begin_step()
        if self._reader is None:
            size = _entropy(self._aead)
            more = size - len(self._nonce)
            self._nonce += data[:more]
            if len(self._nonce) < size:
                self._open = True
                return []
            nonce, data = bytes(self._nonce), data[more:]
            key = Opener(*_response_key(self._enc, nonce, self._secret, self._aead))
            self._reader = _Reader(key, chunked=self._chunked)
        opened = self._reader.feed(data)
        self._open = True
        return opened

    def close(self) -> list[bytes]:
        """Say that the input has ended; return the last plaintext, or raise if the answer is not whole."""
        self._begin_step()
        if self._reader is None:
            raise TruncatedMessage("the message ended within its nonce")
        return self._reader.close()

    def _begin_step(self) -> None:
        if not self._open:
            raise SealingError("this message has already ended, or failed")
        self._open = False  # until the step has succeeded
