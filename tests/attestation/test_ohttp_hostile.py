"""What a box on the way may do to sealed messages, one by one, and that none of it is taken for a message."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.channel import hpke, ohttp, varint
from blindbox_attestation.errors import MalformedMessage, SealingError, TruncatedMessage

KEYS = {1: hpke.PrivateKey.generate(hpke.X_WING), 2: hpke.PrivateKey.generate(hpke.X25519)}
CONFIGS = {key_id: ohttp.KeyConfig(key_id, key.kem, key.public_bytes) for key_id, key in KEYS.items()}
FORMS = pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "plain"])
TEXTS = [b"first", b"second", b"third", b"fourth"]
NONCE = 32  # bytes before the first chunk of an answer, with AES-256-GCM

Opener = ohttp.RequestOpener | ohttp.ResponseOpener


@dataclass(frozen=True)
class Wire:
    """A chunked message taken apart: what is before the chunks, the chunks, the final chunk."""

    start: bytes
    chunks: tuple[bytes, ...]
    final: bytes | None

    @classmethod
    def parse(cls, data: bytes, start: int) -> Wire:
        chunks: list[bytes] = []
        position = start
        while True:
            length = varint.read(data, position)
            assert length is not None
            size, begin = length
            if size == 0:
                return cls(data[:start], tuple(chunks), data[begin:])
            position = begin + size
            chunks.append(data[begin:position])

    def __bytes__(self) -> bytes:
        return b"".join(
            (
                self.start,
                *(varint.encode(len(chunk)) + chunk for chunk in self.chunks),
                b"" if self.final is None else b"\x00" + self.final,
            )
        )


class Exchange:
    """One exchange that went well: the wire of its answer, and any number of openers of that answer."""

    def __init__(self, texts: list[bytes], *, chunked: bool = True, key_id: int = 2) -> None:
        self.client = ohttp.RequestSealer(CONFIGS[key_id], chunked=chunked)
        enclave = ohttp.RequestOpener(KEYS, chunked=chunked)
        enclave.feed(self.client.seal(b"a request", final=True))
        enclave.close()
        sealer = enclave.response_sealer()
        self.texts = texts
        if chunked:
            self.answer = b"".join(map(sealer.seal, texts[:-1])) + sealer.seal(texts[-1], final=True)
        else:
            self.answer = sealer.seal(b"".join(texts), final=True)
        self.chunked = chunked
        self._secret = ohttp._response_secret(self.client._context, self.client._suite, chunked=chunked)

    def opener(self) -> ohttp.ResponseOpener:
        """An opener as `response_opener` gives out once; a test needs it more often than that."""
        return ohttp.ResponseOpener(
            self.client._enc, self._secret, self.client._suite[1], chunked=self.chunked
        )

    def wire(self) -> Wire:
        return Wire.parse(self.answer, NONCE)


def read(opener: Opener, data: bytes, step: int | None = None) -> tuple[list[bytes], SealingError | None]:
    """What an opener gave out, and the error it ended with; fed at once or in steps."""
    out: list[bytes] = []
    try:
        for at in range(0, len(data), step or len(data) or 1):
            out += opener.feed(data[at : at + (step or len(data))])
        out += opener.close()
    except SealingError as error:
        assert not opener.finished
        return out, error
    assert opener.finished
    return out, None


# --- answers to other requests


@FORMS
def test_an_answer_opens_only_for_its_own_request(chunked: bool) -> None:
    """C-26: answers swapped between any two of several requests to one key."""
    exchanges = [Exchange(TEXTS, chunked=chunked, key_id=1 + n % 2) for n in range(6)]
    for asked, answered in itertools.product(exchanges, repeat=2):
        out, error = read(asked.opener(), answered.answer)
        if asked is answered:
            assert error is None
            assert b"".join(out) == b"".join(TEXTS)
        else:
            assert isinstance(error, SealingError)
            assert out == []


@FORMS
def test_an_answer_opens_once(chunked: bool) -> None:
    """C-27: not for a later, equal request, and not a second time behind itself."""
    old, new = Exchange(TEXTS, chunked=chunked), Exchange(TEXTS, chunked=chunked)
    assert read(new.opener(), old.answer)[1] is not None
    assert read(old.opener(), old.answer + old.answer)[1] is not None
    opener = old.opener()
    assert read(opener, old.answer)[1] is None
    with pytest.raises(SealingError):
        opener.feed(old.answer)


def test_the_forms_are_not_taken_for_each_other() -> None:
    """The labels differ: a plain message is no chunk, even with its bytes put into a frame of chunks."""
    client = ohttp.RequestSealer(CONFIGS[2], chunked=False)
    plain = client.seal(b"a request", final=True)
    head, sealed = plain[:39], plain[39:]
    for forged in (plain, head + b"\x00" + sealed, head + varint.encode(len(sealed)) + sealed):
        assert read(ohttp.RequestOpener(KEYS, chunked=True), forged)[1] is not None
    chunked = ohttp.RequestSealer(CONFIGS[2]).seal(b"a request", final=True)
    for forged in (chunked, chunked[:39] + chunked[40:]):
        assert read(ohttp.RequestOpener(KEYS, chunked=False), forged)[1] is not None


# --- cut short


def test_an_answer_cut_at_any_byte_of_64_kib_is_truncated_and_gives_out_whole_chunks_only() -> None:
    """C-28, C-33: at every single byte, with a real end of input there."""
    texts = [b"a", b"b" * 511, b"c" * 16384, b"d" * 16384, b"e" * 16384, b"f" * 15000, b"g" * 872]
    exchange = Exchange(texts)
    answer = exchange.answer
    assert len(answer) > 65536
    borders: list[int] = []  # where each chunk but the final one is complete
    position = NONCE
    for chunk in exchange.wire().chunks:
        position += len(varint.encode(len(chunk))) + len(chunk)
        borders.append(position)
    whole = 0
    for size in range(len(answer)):
        opener = exchange.opener()
        out = opener.feed(memoryview(answer)[:size])
        while whole < len(borders) and borders[whole] <= size:
            whole += 1
        assert out == texts[:whole]
        assert not opener.finished
        with pytest.raises(TruncatedMessage):
            opener.close()
        assert not opener.finished
    assert read(exchange.opener(), answer) == (texts, None)


def test_an_answer_fed_byte_by_byte_is_finished_only_after_its_end() -> None:
    """C-28: `finished` is false at every byte, also behind the last, until the end is authenticated."""
    exchange = Exchange([b"x" * 700, b"y" * 300, b"z"])
    opener = exchange.opener()
    out: list[bytes] = []
    for at in range(len(exchange.answer)):
        out += opener.feed(exchange.answer[at : at + 1])
        assert not opener.finished
    assert out == exchange.texts[:2]
    assert opener.close() == [b"z"]
    assert opener.finished


def test_a_request_cut_at_any_byte_is_truncated() -> None:
    """C-28: the same for what the enclave reads, from the first byte of the header on."""
    client = ohttp.RequestSealer(CONFIGS[1])
    request = client.seal(b"one") + client.seal(b"two") + client.seal(b"three", final=True)
    for size in range(len(request)):
        opener = ohttp.RequestOpener(KEYS, chunked=True)
        out = opener.feed(request[:size])
        assert out in ([], [b"one"], [b"one", b"two"])
        with pytest.raises(TruncatedMessage):
            opener.close()


def test_a_plain_answer_cut_at_any_byte_gives_out_nothing() -> None:
    """C-28: without chunks there is nothing to give out before the end."""
    exchange = Exchange([b"x" * 300], chunked=False)
    for size in range(len(exchange.answer)):
        out, error = read(exchange.opener(), exchange.answer[:size])
        assert out == []
        assert error is not None


def test_a_final_chunk_that_never_comes_is_missed() -> None:
    """C-28: all content has arrived and been given out, and still the message is not whole."""
    exchange = Exchange([*TEXTS, b""])
    out, error = read(exchange.opener(), bytes(replace(exchange.wire(), final=None)))
    assert out == TEXTS
    assert isinstance(error, TruncatedMessage)


# --- chunks out of place

Change = Callable[[Wire], Wire]


def swapped(one: int, other: int) -> Change:
    def change(wire: Wire) -> Wire:
        chunks = list(wire.chunks)
        chunks[one], chunks[other] = chunks[other], chunks[one]
        return replace(wire, chunks=tuple(chunks))

    return change


def without(at: int) -> Change:
    return lambda wire: replace(wire, chunks=wire.chunks[:at] + wire.chunks[at + 1 :])


def twice(at: int) -> Change:
    return lambda wire: replace(wire, chunks=wire.chunks[: at + 1] + wire.chunks[at:])


FOREIGN = Exchange([b"another", b"exchange", b"of the same", b"shape"]).wire()

CHANGES: dict[str, tuple[Change, int]] = {
    # what is done to the wire → how many chunks are still in place before it
    "first two swapped": (swapped(0, 1), 0),
    "last two swapped": (swapped(1, 2), 1),
    "first missing": (without(0), 0),
    "middle missing": (without(1), 1),
    "last missing": (without(2), 2),
    "first twice": (twice(0), 1),
    "last twice": (twice(2), 3),
    "middle from another message": (
        lambda wire: replace(wire, chunks=(wire.chunks[0], FOREIGN.chunks[1], wire.chunks[2])),
        1,
    ),
    "start from another message": (lambda wire: replace(wire, start=FOREIGN.start), 0),
    "final from another message": (lambda wire: replace(wire, final=FOREIGN.final), 3),
    "final as an ordinary chunk": (
        lambda wire: replace(wire, chunks=(*wire.chunks, wire.final or b""), final=None),
        3,
    ),
    "final twice, once as an ordinary chunk": (
        lambda wire: replace(wire, chunks=(*wire.chunks, wire.final or b"")),
        3,
    ),
    "two finals": (lambda wire: replace(wire, final=(wire.final or b"") + b"\x00" + (wire.final or b"")), 3),
    "ordinary chunk as the final one": (
        lambda wire: replace(wire, chunks=wire.chunks[:-1], final=wire.chunks[-1]),
        2,
    ),
    "chunk behind the final one": (
        lambda wire: replace(wire, final=(wire.final or b"") + b"\x15" + wire.chunks[0]),
        3,
    ),
    "one byte behind the final chunk": (lambda wire: replace(wire, final=(wire.final or b"") + b"\x00"), 3),
    "a KiB of zeros behind the final chunk": (
        lambda wire: replace(wire, final=(wire.final or b"") + bytes(1024)),
        3,
    ),
    "two chunks joined": (
        lambda wire: replace(wire, chunks=(wire.chunks[0] + wire.chunks[1], wire.chunks[2])),
        0,
    ),
    "chunk cut in two": (
        lambda wire: replace(wire, chunks=(wire.chunks[0][:17], wire.chunks[0][17:] * 5, *wire.chunks[1:])),
        0,
    ),
    "empty chunk put in between": (
        lambda wire: replace(wire, chunks=(wire.chunks[0], bytes(16), *wire.chunks[1:])),
        1,
    ),
    "chunk shorter than a tag": (lambda wire: replace(wire, chunks=(wire.chunks[0], bytes(15))), 1),
    "final chunk shorter than a tag": (lambda wire: replace(wire, final=bytes(15)), 3),
}


@pytest.mark.parametrize("step", [None, 1, 7], ids=["at once", "byte by byte", "by sevens"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_message_whose_chunks_are_not_as_they_were_sealed_is_refused(name: str, step: int | None) -> None:
    """C-29, C-33: and nothing is given out from the first wrong chunk on."""
    change, in_place = CHANGES[name]
    exchange = Exchange(TEXTS)
    out, error = read(exchange.opener(), bytes(change(exchange.wire())), step)
    assert error is not None
    assert out == TEXTS[:in_place]


@given(order=st.permutations(range(4)))
def test_only_the_order_of_sealing_opens(order: list[int]) -> None:
    """C-29: every permutation of the chunks but one is refused."""
    exchange = Exchange([b"0", b"1", b"2", b"3", b""])
    wire = exchange.wire()
    forged = replace(wire, chunks=tuple(wire.chunks[at] for at in order))
    out, error = read(exchange.opener(), bytes(forged), 1)
    right = list(itertools.takewhile(lambda pair: pair[0] == pair[1], enumerate(order)))
    assert out == [b"%d" % at for at, _ in right]
    assert (error is None) == (len(right) == 4)


def test_a_sealer_never_makes_an_empty_chunk_before_the_final_one_and_an_opener_takes_none() -> None:
    """C-29: a well-sealed empty chunk, from an end that has the key but not the manners."""
    exchange = Exchange([b"one", b"", b"", b"two"])
    assert len(exchange.wire().chunks) == 1
    client = ohttp.RequestSealer(CONFIGS[2])
    start = client.seal(b"")
    empty = client._context.seal(b"", b"")
    with pytest.raises(MalformedMessage, match="empty"):
        ohttp.RequestOpener(KEYS, chunked=True).feed(start + varint.encode(len(empty)) + empty)


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("step", [1, 64, 4096, None])
def test_a_corrupt_chunk_gives_out_only_the_chunks_before_it(bad: int, step: int | None) -> None:
    """C-33: all of them however the wire is cut, no byte of it or after it; the opener stays closed."""
    texts = [bytes([65 + n]) * 5000 for n in range(5)]
    exchange = Exchange(texts)
    wire = exchange.wire()
    sealed = [*wire.chunks, wire.final or b""]
    sealed[bad] = sealed[bad][:100] + bytes([sealed[bad][100] ^ 0x80]) + sealed[bad][101:]
    forged = bytes(replace(wire, chunks=tuple(sealed[:-1]), final=sealed[-1]))
    opener = exchange.opener()
    out, error = read(opener, forged, step)
    assert isinstance(error, SealingError)
    assert out == texts[:bad]
    with pytest.raises(SealingError):
        opener.feed(b"more")


@settings(deadline=None, max_examples=150)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), step=st.sampled_from([None, 1, 13]))
def test_any_flipped_bit_of_an_answer_is_noticed(at: int, bit: int, step: int | None) -> None:
    exchange = Exchange(TEXTS)
    forged = bytearray(exchange.answer)
    forged[at % len(forged)] ^= 1 << bit
    out, error = read(exchange.opener(), bytes(forged), step)
    assert error is not None
    assert out == TEXTS[: len(out)]
    assert len(out) < len(TEXTS)


@settings(deadline=None, max_examples=150)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), key_id=st.sampled_from([1, 2]))
def test_any_flipped_bit_of_a_request_is_noticed(at: int, bit: int, key_id: int) -> None:
    """Also in the header, which is bound through `info`, and in the encapsulated key."""
    client = ohttp.RequestSealer(CONFIGS[key_id])
    forged = bytearray(client.seal(b"one") + client.seal(b"two", final=True))
    place = at % len(forged)
    forged[place] ^= 1 << bit
    if key_id == 2 and place == 7 + 31:
        # RFC 7748 §5 ignores the top bit of a point; RFC 9180 binds enc itself, so this too is noticed.
        forged[place] ^= 1 << bit
        forged[place] ^= 0x80
    out, error = read(ohttp.RequestOpener(KEYS, chunked=True), bytes(forged))
    assert error is not None
    assert out in ([], [b"one"])


# --- lengths that lie


def started() -> tuple[ohttp.RequestOpener, ohttp.RequestSealer]:
    """An opener that has read a header, and waits for a chunk."""
    client = ohttp.RequestSealer(CONFIGS[2])
    opener = ohttp.RequestOpener(KEYS, chunked=True)
    opener.feed(client.seal(b""))
    return opener, client


@pytest.mark.parametrize("size", [ohttp.MAX_CHUNK + 17, 2**20, 2**30, 2**62 - 1])
def test_a_chunk_length_beyond_the_limit_is_refused_at_once(size: int) -> None:
    """C-30: before any byte of the chunk has come, and without memory for it."""
    opener, _ = started()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            opener.feed(varint.encode(size))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("spelling", ["4015", "80000015", "c000000000000015", "4000", "80000000"])
def test_a_longer_spelling_of_a_chunk_length_is_refused(spelling: str) -> None:
    """C-30: also of the zero that begins the final chunk."""
    opener, _ = started()
    with pytest.raises(MalformedMessage, match="shortest"):
        opener.feed(bytes.fromhex(spelling))


def test_a_final_chunk_beyond_the_limit_is_refused_while_it_comes() -> None:
    """C-30: it reaches to the end of the input, so the limit is all that ends it."""
    opener, _ = started()
    opener.feed(b"\x00" + bytes(ohttp.MAX_CHUNK + 16))
    with pytest.raises(MalformedMessage):
        opener.feed(b"\x00")


def test_a_length_that_is_off_by_one_is_refused() -> None:
    """C-30: the length itself is not authenticated, the bytes it sets apart are."""
    for change in (-1, 1):
        exchange = Exchange(TEXTS)
        forged = bytearray(exchange.answer)
        forged[NONCE] += change
        out, error = read(exchange.opener(), bytes(forged))
        assert out == []
        assert error is not None


# --- keys, counters, noise


@FORMS
def test_no_two_requests_share_an_encapsulated_key_and_no_two_answers_a_nonce(chunked: bool) -> None:
    """C-31: over two thousand exchanges of one client with one key."""
    rounds = 2000
    starts, nonces = set(), set()
    for _ in range(rounds):
        client = ohttp.RequestSealer(CONFIGS[2], chunked=chunked)
        enclave = ohttp.RequestOpener(KEYS, chunked=chunked)
        request = client.seal(b"", final=True)
        enclave.feed(request)
        enclave.close()
        starts.add(request[:39])
        nonces.add(enclave.response_sealer().seal(b"", final=True)[:NONCE])
        assert enclave.replay_id == client.replay_id
    assert len(starts) == len(nonces) == rounds


def test_an_answer_ends_before_its_counter_does() -> None:
    """C-31: the draft's limit of 2^(8·Nn) chunks is refused, not wrapped."""
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    enclave.feed(ohttp.RequestSealer(CONFIGS[2]).seal(b"x", final=True))
    enclave.close()
    sealer = enclave.response_sealer()
    sealer._writer._sealer._sequence = itertools.count(2**96 - 2)
    sealer.seal(b"the last one")
    with pytest.raises(SealingError, match="as many"):
        sealer.seal(b"one too many")


def test_a_request_to_a_key_that_is_not_here_is_refused() -> None:
    """C-32: an unknown id, another key under a known id, another KEM under a known id, an unknown KEM."""
    stranger = ohttp.KeyConfig(1, hpke.X_WING, hpke.PrivateKey.generate(hpke.X_WING).public_bytes)
    forged = [
        ohttp.RequestSealer(replace(CONFIGS[2], key_id=9)).seal(b"x", final=True),
        ohttp.RequestSealer(stranger).seal(b"x", final=True),
        ohttp.RequestSealer(replace(CONFIGS[2], key_id=1)).seal(b"x", final=True),
        b"\x02\x00\x10" + ohttp.RequestSealer(CONFIGS[2]).seal(b"x", final=True)[3:],
    ]
    for request in forged:
        for step in (None, 1):
            out, error = read(ohttp.RequestOpener(KEYS, chunked=True), request, step)
            assert out == []
            assert isinstance(error, SealingError)


@pytest.mark.parametrize("key_id", [1, 2], ids=["x-wing", "x25519"])
def test_a_low_order_point_in_a_request_is_refused(key_id: int) -> None:
    """C-32: as the encapsulated key, or as its X25519 half; and in a key configuration."""
    request = ohttp.RequestSealer(CONFIGS[key_id]).seal(b"x", final=True)
    end = 7 + hpke.KEMS[KEYS[key_id].kem].enc
    forged = request[: end - 32] + bytes(32) + request[end:]
    with pytest.raises(SealingError):
        ohttp.RequestOpener(KEYS, chunked=True).feed(forged)
    public = CONFIGS[key_id].public_key[:-32] + bytes(32)
    with pytest.raises(SealingError):
        ohttp.RequestSealer(replace(CONFIGS[key_id], public_key=public))


def fed(opener: Opener, pieces: Iterable[bytes]) -> SealingError | None:
    try:
        for piece in pieces:
            opener.feed(piece)
        opener.close()
    except SealingError as error:
        return error
    return None


@settings(deadline=None, max_examples=300)
@given(
    start=st.sampled_from([b"", b"\x01\x64\x7a\x00\x01\x00\x02", b"\x02\x00\x20\x00\x01\x00\x02"]),
    noise=st.binary(max_size=1400),
    cuts=st.lists(st.integers(0, 1400), max_size=4),
    chunked=st.booleans(),
)
def test_noise_is_no_request(start: bytes, noise: bytes, cuts: list[int], chunked: bool) -> None:
    """C-30: nothing but the errors of this house, whatever comes."""
    data = start + noise
    borders = sorted({0, len(data), *(min(place, len(data)) for place in cuts)})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    assert isinstance(fed(ohttp.RequestOpener(KEYS, chunked=chunked), pieces), SealingError)


ANSWERED = {form: Exchange(TEXTS, chunked=form) for form in (True, False)}


@settings(deadline=None, max_examples=300)
@given(
    kept=st.integers(0, 150),
    noise=st.binary(max_size=300),
    cuts=st.lists(st.integers(0, 400), max_size=4),
    chunked=st.booleans(),
)
def test_noise_is_no_answer(kept: int, noise: bytes, cuts: list[int], chunked: bool) -> None:
    """C-30: nor is it one behind the true beginning of an answer."""
    exchange = ANSWERED[chunked]
    data = exchange.answer[: min(kept, len(exchange.answer) - 1)] + noise
    if data == exchange.answer:
        return
    borders = sorted({0, len(data), *(min(place, len(data)) for place in cuts)})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    assert isinstance(fed(exchange.opener(), pieces), SealingError)


def test_feeding_byte_by_byte_costs_no_more_than_in_proportion() -> None:
    """A quarter of a MiB in the smallest pieces there are: a quadratic opener would need minutes."""
    exchange = Exchange([b"x" * 262_144])
    opener = exchange.opener()
    out: list[bytes] = []
    for at in range(len(exchange.answer)):
        out += opener.feed(exchange.answer[at : at + 1])
    assert b"".join(out + opener.close()) == b"x" * 262_144
