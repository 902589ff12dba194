"""Oblivious HTTP and its chunked form: published bytes both ways, key configurations, round trips."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blindbox_attestation.channel import hpke, ohttp
from blindbox_attestation.errors import MalformedMessage, SealingError, TruncatedMessage

unhex = bytes.fromhex
KEYS = {1: hpke.PrivateKey.generate(hpke.X_WING), 2: hpke.PrivateKey.generate(hpke.X25519)}
CONFIGS = {key_id: ohttp.KeyConfig(key_id, key.kem, key.public_bytes) for key_id, key in KEYS.items()}
AES_128 = (hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_128_GCM)
AES_256 = (hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_256_GCM)
FORMS = pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "plain"])


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


def opened(opener: ohttp.RequestOpener | ohttp.ResponseOpener, pieces: Iterable[bytes]) -> list[bytes]:
    out = [plaintext for piece in pieces for plaintext in opener.feed(piece)]
    assert not opener.finished
    out += opener.close()
    assert opener.finished
    return out


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# --- published bytes


@pytest.fixture(scope="module")
def appendix_a(vectors: Path) -> list[bytes]:
    """RFC 9458 appendix A, in its order."""
    return [
        unhex(step["hex"])
        for step in json.loads((vectors / "crypto" / "rfc9458_ohttp_appendix_a.json").read_text())
    ]


@pytest.fixture(scope="module")
def chunked_example(vectors: Path) -> dict[str, Any]:
    """The example of draft-ietf-ohai-chunked-ohttp."""
    example: dict[str, Any] = json.loads((vectors / "crypto" / "chunked_ohttp_example.json").read_text())
    return example


def test_the_exchange_of_rfc_9458_has_its_published_bytes_in_both_directions(
    appendix_a: list[bytes],
) -> None:
    """RFC 9458 appendix A."""
    secret_key, config, request, ephemeral, enc, _, sealed_request, answer, *_, sealed_answer = appendix_a
    gateway = hpke.PrivateKey.from_bytes(hpke.X25519, secret_key)
    parsed = ohttp.KeyConfig.parse(config)
    assert parsed.public_key == gateway.public_bytes
    assert parsed.encode() == config

    client = ohttp.RequestSealer(parsed, chunked=False, suite=AES_128, _ephemeral=ephemeral)
    assert client.seal(request, final=True) == sealed_request
    assert sealed_request[7:39] == enc

    enclave = ohttp.RequestOpener({parsed.key_id: gateway}, chunked=False)
    assert opened(enclave, bytewise(sealed_request)) == [request]
    nonce = sealed_answer[:16]
    assert enclave.response_sealer(_nonce=nonce).seal(answer, final=True) == sealed_answer
    assert opened(client.response_opener(), bytewise(sealed_answer)) == [answer]


def test_the_steps_of_rfc_9458_between_request_and_answer_are_as_published(appendix_a: list[bytes]) -> None:
    """RFC 9458 appendix A: info, exported secret, salt, pseudorandom key, AEAD key and nonce."""
    secret_key, _, _, _, enc, info, _, _, exported, salt, prk, key, nonce, sealed_answer = appendix_a
    gateway = hpke.PrivateKey.from_bytes(hpke.X25519, secret_key)
    context = hpke.setup_recipient(gateway, *AES_128, enc, info)
    assert context.export(b"message/bhttp response", 16) == exported
    assert enc + sealed_answer[:16] == salt
    assert hpke.extract(salt, exported) == prk
    assert ohttp._response_key(enc, sealed_answer[:16], exported, AES_128[1]) == (AES_128[1], key, nonce)


def test_the_chunked_exchange_has_its_published_bytes_in_both_directions(
    chunked_example: dict[str, Any],
) -> None:
    """draft-ietf-ohai-chunked-ohttp, appendix "Example"."""
    config = ohttp.KeyConfig.parse(unhex(chunked_example["key_config"]))
    gateway = hpke.PrivateKey.from_bytes(hpke.X25519, unhex(chunked_example["gateway_x25519_secret_key"]))
    request, answer = unhex(chunked_example["bhttp_request"]), unhex(chunked_example["bhttp_response"])
    sealed_request = unhex(chunked_example["encapsulated_request"])
    sealed_answer = unhex(chunked_example["encapsulated_response"])

    def pieces(whole: bytes, lengths: list[int]) -> list[bytes]:
        source = iter(whole)
        return [bytes(itertools.islice(source, length)) for length in lengths]

    client = ohttp.RequestSealer(
        config, suite=AES_128, _ephemeral=unhex(chunked_example["client_ephemeral_secret_key"])
    )
    asked = pieces(request, chunked_example["request_chunk_plaintext_lengths"])
    assert sealed_in_pieces(client, asked) == sealed_request

    enclave = ohttp.RequestOpener({config.key_id: gateway}, chunked=True)
    assert opened(enclave, bytewise(sealed_request)) == asked[:2]
    told = pieces(answer, chunked_example["response_chunk_plaintext_lengths"])
    sealer = enclave.response_sealer(_nonce=sealed_answer[:16])
    assert sealed_in_pieces(sealer, told) == sealed_answer
    assert opened(client.response_opener(), bytewise(sealed_answer)) == told[:2]


def sealed_in_pieces(sealer: ohttp.RequestSealer | ohttp.ResponseSealer, pieces: list[bytes]) -> bytes:
    return b"".join(sealer.seal(piece) for piece in pieces[:-1]) + sealer.seal(pieces[-1], final=True)


# --- key configurations


def test_key_configurations_come_back() -> None:
    configs = tuple(CONFIGS.values())
    assert ohttp.parse_key_configs(ohttp.encode_key_configs(configs)) == configs


def test_x_wing_is_preferred_whatever_the_order() -> None:
    """SPEC §5.1."""
    for order in itertools.permutations(CONFIGS.values()):
        assert ohttp.preferred(order).kem == hpke.X_WING
    assert ohttp.preferred([CONFIGS[2]]).kem == hpke.X25519
    foreign = ohttp.KeyConfig(3, hpke.X_WING, KEYS[1].public_bytes, ((1, 3),))
    assert ohttp.preferred([foreign, CONFIGS[2]]) == CONFIGS[2]
    for none in ([], [foreign]):
        with pytest.raises(SealingError):
            ohttp.preferred(none)


@settings(deadline=None)
@given(
    key_id=st.integers(0, 255),
    suites=st.lists(
        st.tuples(st.integers(0, 65535), st.integers(0, 65535)), min_size=1, max_size=5, unique=True
    ),
)
def test_any_key_configuration_comes_back(key_id: int, suites: list[tuple[int, int]]) -> None:
    config = ohttp.KeyConfig(key_id, hpke.X25519, bytes(32), tuple(suites))
    assert ohttp.parse_key_configs(ohttp.encode_key_configs([config])) == (config,)


def test_a_damaged_list_of_key_configurations_is_refused() -> None:
    """RFC 9458 §3.2: cut anywhere, continued, empty, or one id twice."""
    encoded = ohttp.encode_key_configs(CONFIGS.values())
    border = len(ohttp.encode_key_configs([CONFIGS[1]]))
    for size in set(range(len(encoded))) - {border}:
        with pytest.raises(MalformedMessage):
            ohttp.parse_key_configs(encoded[:size])
    for damaged in (encoded + b"\x00", encoded + encoded, b"", b"\x00\x00"):
        with pytest.raises(MalformedMessage):
            ohttp.parse_key_configs(damaged)
    one = CONFIGS[2].encode()
    for damaged in (*(one[:size] for size in range(len(one))), one + b"\x00", one + bytes(4)):
        with pytest.raises(MalformedMessage):
            ohttp.KeyConfig.parse(damaged)


@pytest.mark.parametrize(
    "fields",
    [
        {"key_id": 256},
        {"key_id": -1},
        {"kem": 0x0010},
        {"public_key": bytes(31)},
        {"public_key": bytes(33)},
        {"suites": ()},
        {"suites": (AES_128, AES_128)},
        {"suites": ((1, 65536),)},
    ],
    ids=repr,
)
def test_a_key_configuration_that_cannot_be_is_not_made(fields: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"key_id": 1, "kem": hpke.X25519, "public_key": bytes(32), "suites": (AES_128,)}
    ohttp.KeyConfig(**whole)
    with pytest.raises(MalformedMessage):
        ohttp.KeyConfig(**whole | fields)


def test_an_unknown_kem_in_a_list_is_refused() -> None:
    encoded = bytearray(CONFIGS[2].encode())
    encoded[1:3] = (0x0010).to_bytes(2, "big")
    with pytest.raises(MalformedMessage, match="KEM 0x0010"):
        ohttp.KeyConfig.parse(bytes(encoded))


def test_suites_of_half_a_length_are_refused() -> None:
    encoded = CONFIGS[2].encode()
    assert encoded[-10:-8] == b"\x00\x08"
    with pytest.raises(MalformedMessage, match="four bytes"):
        ohttp.KeyConfig.parse(encoded[:-10] + b"\x00\x06" + encoded[-8:-2])


@given(st.binary(max_size=120))
def test_noise_is_no_list_of_key_configurations(noise: bytes) -> None:
    try:
        parsed = ohttp.parse_key_configs(noise)
    except MalformedMessage:
        return
    assert ohttp.encode_key_configs(parsed) == noise


# --- round trips


@FORMS
@pytest.mark.parametrize("key_id", list(KEYS), ids=["x-wing", "x25519"])
@pytest.mark.parametrize("suite", [AES_128, AES_256], ids=["aes-128-gcm", "aes-256-gcm"])
def test_a_request_and_its_answer_come_back(key_id: int, suite: tuple[int, int], chunked: bool) -> None:
    client = ohttp.RequestSealer(CONFIGS[key_id], chunked=chunked, suite=suite)
    enclave = ohttp.RequestOpener(KEYS, chunked=chunked)
    assert opened(enclave, [client.seal(b"a request", final=True)]) == [b"a request"]
    assert enclave.key_id == key_id
    assert enclave.replay_id == client.replay_id
    answer = enclave.response_sealer().seal(b"an answer", final=True)
    assert opened(client.response_opener(), [answer]) == [b"an answer"]


PIECES = st.lists(
    st.one_of(st.binary(max_size=300), st.sampled_from([16383, 16384, 16385, 40000]).map(bytes)),
    min_size=1,
    max_size=5,
)
CUTS = st.lists(st.integers(0, 200_000), max_size=12)


@settings(deadline=None, max_examples=60)
@given(key_id=st.sampled_from([1, 2]), asked=PIECES, told=PIECES, cuts=CUTS)
def test_streams_come_back_however_the_wire_is_cut(
    key_id: int, asked: list[bytes], told: list[bytes], cuts: list[int]
) -> None:
    client = ohttp.RequestSealer(CONFIGS[key_id])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    request = sealed_in_pieces(client, asked)
    chunks = opened(enclave, cut(request, cuts))
    assert b"".join(chunks) == b"".join(asked)
    assert all(0 < len(chunk) <= ohttp.MAX_CHUNK for chunk in chunks)
    answer = sealed_in_pieces(enclave.response_sealer(), told)
    assert b"".join(opened(client.response_opener(), cut(answer, cuts))) == b"".join(told)


@settings(deadline=None, max_examples=40)
@given(asked=st.binary(max_size=40_000), told=st.binary(max_size=40_000), cuts=CUTS)
def test_plain_messages_come_back_however_the_wire_is_cut(asked: bytes, told: bytes, cuts: list[int]) -> None:
    client = ohttp.RequestSealer(CONFIGS[2], chunked=False)
    enclave = ohttp.RequestOpener(KEYS, chunked=False)
    assert b"".join(opened(enclave, cut(client.seal(asked, final=True), cuts))) == asked
    answer = enclave.response_sealer().seal(told, final=True)
    assert b"".join(opened(client.response_opener(), cut(answer, cuts))) == told


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 32768, 32769])
def test_a_long_piece_becomes_full_chunks_and_the_last_one_is_final(size: int) -> None:
    """C-29: full and empty last chunks are as good as any."""
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    chunks = opened(enclave, [client.seal(bytes(size), final=True)])
    assert [len(chunk) for chunk in chunks] == [
        min(ohttp.MAX_CHUNK, size - start) for start in range(0, size, ohttp.MAX_CHUNK)
    ]


@pytest.mark.parametrize("wrap", [bytearray, memoryview])
def test_any_buffer_is_taken(wrap: Any) -> None:
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    request = client.seal(wrap(b"one")) + client.seal(wrap(b"two"), final=True)
    assert opened(enclave, [wrap(request)]) == [b"one", b"two"]
    answer = enclave.response_sealer().seal(wrap(b"three"), final=True)
    assert opened(client.response_opener(), [wrap(answer)]) == [b"three"]


def test_an_answer_may_begin_before_the_request_has_ended() -> None:
    client = ohttp.RequestSealer(CONFIGS[1])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    assert enclave.feed(client.seal(b"a question")) == [b"a question"]
    sealer, opener = enclave.response_sealer(), client.response_opener()
    assert opener.feed(sealer.seal(b"part of an answer")) == [b"part of an answer"]
    assert opened(enclave, [client.seal(b"", final=True)]) == []


def test_sealing_nothing_sends_the_start_of_a_message_and_no_chunk() -> None:
    client = ohttp.RequestSealer(CONFIGS[2])
    assert len(client.seal(b"")) == 7 + 32
    assert client.seal(b"") == b""
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    whole = ohttp.RequestSealer(CONFIGS[2]).seal(b"x", final=True)
    opened(enclave, [whole])
    assert len(enclave.response_sealer().seal(b"")) == 32


# --- what an end refuses to do


def test_a_sealer_says_nothing_after_the_end() -> None:
    for chunked in (True, False):
        client = ohttp.RequestSealer(CONFIGS[2], chunked=chunked)
        client.seal(b"all", final=True)
        for final in (True, False):
            with pytest.raises(SealingError):
                client.seal(b"more", final=final)
    with pytest.raises(SealingError):
        ohttp.RequestSealer(CONFIGS[2], chunked=False).seal(b"not all")


@FORMS
def test_an_opener_takes_nothing_after_its_end_or_its_failure(chunked: bool) -> None:
    request = ohttp.RequestSealer(CONFIGS[2], chunked=chunked).seal(b"all", final=True)
    ended = ohttp.RequestOpener(KEYS, chunked=chunked)
    opened(ended, [request])
    failed = ohttp.RequestOpener(KEYS, chunked=chunked)
    failed.feed(request[:-1])
    with pytest.raises(SealingError):
        failed.close()
    for opener in (ended, failed):
        for again in (lambda one=opener: one.feed(b"x"), opener.close):
            with pytest.raises(SealingError):
                again()
    assert ended.finished
    assert not failed.finished


def test_a_request_has_one_answer() -> None:
    """C-27: neither end can be had twice."""
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    opened(enclave, [client.seal(b"x", final=True)])
    for once in (enclave.response_sealer, client.response_opener):
        once()
        with pytest.raises(SealingError, match="one answer"):
            once()


def test_a_request_is_answered_only_after_it_was_opened() -> None:
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    with pytest.raises(SealingError):
        enclave.response_sealer()
    request = client.seal(b"x", final=True)
    enclave.feed(request[:-1])
    with pytest.raises(SealingError):
        enclave.response_sealer()
    enclave.feed(request[-1:])
    enclave.close()
    enclave.response_sealer()


def test_a_request_that_broke_after_it_was_opened_can_still_be_answered() -> None:
    """After a request has been opened every answer is sealed, also one that refuses it (SPEC §1)."""
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    enclave.feed(client.seal(b"x"))
    with pytest.raises(TruncatedMessage):
        enclave.close()
    answer = enclave.response_sealer().seal(b"refused", final=True)
    assert opened(client.response_opener(), [answer]) == [b"refused"]


def test_ends_of_an_exchange_cannot_be_copied_or_pickled() -> None:
    """C-31: a copy would seal two messages under one nonce."""
    client = ohttp.RequestSealer(CONFIGS[2])
    enclave = ohttp.RequestOpener(KEYS, chunked=True)
    opened(enclave, [client.seal(b"x", final=True)])
    for held in (client, enclave, client.response_opener(), enclave.response_sealer()):
        for take in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="one owner"):
                take(held)
        assert not hasattr(held, "__dict__")


def test_a_suite_must_be_one_that_the_configuration_lists() -> None:
    """SPEC §5.1: neither end goes below what was attested."""
    only_256 = ohttp.KeyConfig(2, hpke.X25519, KEYS[2].public_bytes, (AES_256,))
    for suite in (AES_128, (1, 3), (2, 2)):
        with pytest.raises(SealingError):
            ohttp.RequestSealer(only_256, suite=suite)
    foreign = ohttp.KeyConfig(2, hpke.X25519, KEYS[2].public_bytes, ((1, 3),))
    with pytest.raises(SealingError):
        ohttp.RequestSealer(foreign)
    request = ohttp.RequestSealer(CONFIGS[2], suite=AES_128).seal(b"x", final=True)
    with pytest.raises(SealingError):
        ohttp.RequestOpener(KEYS, chunked=True, suites=only_256.suites).feed(request)


def test_the_strongest_listed_suite_is_used() -> None:
    for suites, used in (((AES_128, AES_256), AES_256), ((AES_128,), AES_128), (((1, 3), AES_128), AES_128)):
        config = ohttp.KeyConfig(2, hpke.X25519, KEYS[2].public_bytes, suites)
        header = ohttp.RequestSealer(config).seal(b"")[:7]
        assert header[3:] == used[0].to_bytes(2, "big") + used[1].to_bytes(2, "big")


# --- admission


def test_admission_is_asked_once_when_the_first_piece_is_authentic() -> None:
    """SPEC §5.4: not for a header alone, and not again for later pieces."""
    asked: list[tuple[int, bytes]] = []
    client = ohttp.RequestSealer(CONFIGS[1])
    enclave = ohttp.RequestOpener(KEYS, chunked=True, admit=lambda *who: asked.append(who))
    first, second, last = client.seal(b"one"), client.seal(b"two"), client.seal(b"", final=True)
    enclave.feed(first[:-1])
    assert asked == []
    assert enclave.replay_id == client.replay_id
    enclave.feed(first[-1:])
    assert asked == [(1, client.replay_id)]
    assert opened(enclave, [second, last]) == [b"two"]
    assert len(asked) == 1


@FORMS
def test_a_message_with_an_empty_final_chunk_alone_is_asked_about_too(chunked: bool) -> None:
    asked: list[tuple[int, bytes]] = []
    client = ohttp.RequestSealer(CONFIGS[2], chunked=chunked)
    enclave = ohttp.RequestOpener(KEYS, chunked=chunked, admit=lambda *who: asked.append(who))
    assert opened(enclave, [client.seal(b"", final=True)]) == []
    assert asked == [(2, client.replay_id)]


@FORMS
def test_a_request_that_is_not_admitted_gives_out_nothing(chunked: bool) -> None:
    class SeenBefore(Exception):
        pass

    seen: set[bytes] = set()

    def admit(key_id: int, replay_id: bytes) -> None:
        if replay_id in seen:
            raise SeenBefore
        seen.add(replay_id)

    request = ohttp.RequestSealer(CONFIGS[2], chunked=chunked).seal(b"x" * 40_000, final=True)
    assert (
        b"".join(opened(ohttp.RequestOpener(KEYS, chunked=chunked, admit=admit), [request])) == b"x" * 40_000
    )
    again = ohttp.RequestOpener(KEYS, chunked=chunked, admit=admit)
    with pytest.raises(SeenBefore):
        opened(again, [request])
    with pytest.raises(SealingError):
        again.response_sealer()
    with pytest.raises(SealingError):
        again.feed(b"")


def test_a_forged_request_is_not_asked_about() -> None:
    asked: list[tuple[int, bytes]] = []
    request = ohttp.RequestSealer(CONFIGS[2]).seal(b"x", final=True)
    enclave = ohttp.RequestOpener(KEYS, chunked=True, admit=lambda *who: asked.append(who))
    enclave.feed(request[:-1] + bytes([request[-1] ^ 1]))
    with pytest.raises(SealingError):
        enclave.close()
    assert asked == []
