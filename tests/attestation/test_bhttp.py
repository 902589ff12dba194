"""Binary HTTP: the standard's examples, round trips in both framings, and messages that may not be read."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blindbox_attestation.channel import bhttp, varint
from blindbox_attestation.channel.bhttp import End, Informational, RequestHead, ResponseHead
from blindbox_attestation.errors import MalformedMessage, SealingError, TruncatedMessage

# RFC 9292 §5.1 and §5.2
KNOWN_REQUEST = bytes.fromhex(
    "00034745540568747470730" + "00a2f68656c6c6f2e747874406c0a757365722d6167656e74346375726c2f372e31362e3320"
    "6c69626375726c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f7777772e6578"
    "616d706c652e636f6d0f6163636570742d6c616e67756167650665"
    "6e2c206d690000"
)
OPEN_REQUEST = bytes.fromhex(
    "02034745540568747470730" + "00a2f68656c6c6f2e7478740a757365722d6167656e74346375726c2f372e31362e3320"
    "6c69626375726c2f372e31362e33204f70656e53534c2f302e392e376c207a6c69622f312e322e3304686f73740f7777772e6578"
    "616d706c652e636f6d0f6163636570742d6c616e67756167650665"
    "6e2c206d6900000000000000000000000000"
)
OPEN_RESPONSE = bytes.fromhex(
    "0340660772756e6e696e670a22736c65657020313522004067046c696e6b233c2f7374796c652e6373733e3b2072656c"
    "3d7072656c6f61643b2061733d7374796c65046c696e6b243c2f7363726970742e6a733e3b2072656c3d7072656c6f61"
    "643b2061733d7363726970740040c804646174651d4d6f6e2c203237204a756c20323030392031323a32383a35332047"
    "4d540673657276657206417061636865"
    "0d6c6173742d6d6f6469666965641d5765642c203232204a756c20323030392031393a31353a353620474d5404657461"
    "671422333461613338372d642d31353638656230302"
    "20d6163636570742d72616e6765730562797465730e636f6e74656e742d6c656e677468023531047661727"
    "90f4163636570742d456e636f64696e670c636f6e74656e742d747970650a746578742f706c61696e003348656c6c6f"
    "20576f726c6421204d7920636f6e74656e7420696e636c75646573206120747261696c696e672043524c462e0d0a0000"
)
KNOWN_RESPONSE = bytes.fromhex(
    "0140c8001d5468697320636f6e74656e7420636f6e7461696e732043524c462e0d0a0d07747261696c65720474657874"
)
HELLO = RequestHead(
    b"GET",
    b"https",
    b"",
    b"/hello.txt",
    (
        (b"user-agent", b"curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"),
        (b"host", b"www.example.com"),
        (b"accept-language", b"en, mi"),
    ),
)
POST = RequestHead(b"POST", b"http", b"enclave", b"/test?x=1", ((b"content-type", b"application/json"),))

Parser = Callable[[], Any]
PARSERS = pytest.mark.parametrize("parser", [bhttp.RequestParser, bhttp.ResponseParser])


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


def read(parser: Parser, pieces: Iterable[bytes]) -> list[Any]:
    """All events of a message, neighbouring pieces of content joined."""
    reader = parser()
    events = [event for piece in pieces for event in reader.feed(piece)]
    events += reader.close()
    assert reader.finished
    joined: list[Any] = []
    for event in events:
        if isinstance(event, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += event
        else:
            joined.append(event)
    return joined


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# --- the standard's examples


def test_the_known_length_request_of_the_standard_is_read_and_written() -> None:
    """RFC 9292 §5.1."""
    assert read(bhttp.RequestParser, [KNOWN_REQUEST]) == [HELLO, End()]
    assert bhttp.encode_request(HELLO) == KNOWN_REQUEST


def test_the_indeterminate_length_request_of_the_standard_is_read_and_written() -> None:
    """RFC 9292 §5.1: it carries ten bytes of padding."""
    assert read(bhttp.RequestParser, [OPEN_REQUEST]) == [HELLO, End()]
    assert bhttp.request_start(HELLO) + bhttp.end() + bytes(10) == OPEN_REQUEST


def test_the_indeterminate_length_answer_of_the_standard_is_read_and_written() -> None:
    """RFC 9292 §5.2: two informational answers go before it."""
    running, hints, head, body, last = read(bhttp.ResponseParser, [OPEN_RESPONSE])
    assert running == Informational(102, ((b"running", b'"sleep 15"'),))
    assert [name for name, _ in hints.fields] == [b"link", b"link"]
    assert (hints.status, head.status, len(head.fields)) == (103, 200, 8)
    assert body == b"Hello World! My content includes a trailing CRLF.\r\n"
    assert last == End()
    rewritten = bhttp.response_start(head, (running, hints)) + bhttp.content(body) + bhttp.end()
    assert rewritten == OPEN_RESPONSE


def test_the_known_length_answer_of_the_standard_is_read_and_written() -> None:
    """RFC 9292 §5.2: it has a trailer."""
    body, trailers = b"This content contains CRLF.\r\n", ((b"trailer", b"text"),)
    assert read(bhttp.ResponseParser, [KNOWN_RESPONSE]) == [ResponseHead(200), body, End(trailers)]
    assert bhttp.encode_response(ResponseHead(200), body, trailers) == KNOWN_RESPONSE


@pytest.mark.parametrize("message", [KNOWN_REQUEST, OPEN_REQUEST[:-10]], ids=["known", "indeterminate"])
def test_empty_last_parts_may_be_left_out(message: bytes) -> None:
    """RFC 9292 §3.8: trailers if they are empty, and content if both are."""
    for missing in (0, 1, 2):
        assert read(bhttp.RequestParser, [message[: len(message) - missing]]) == [HELLO, End()]
    with pytest.raises(TruncatedMessage):
        read(bhttp.RequestParser, [message[:-3]])


def test_the_bare_messages_of_oblivious_http_are_read() -> None:
    """RFC 9458 appendix A: control data and nothing after it."""
    request = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
    assert read(bhttp.RequestParser, [request]) == [
        RequestHead(b"GET", b"https", b"example.com", b"/"),
        End(),
    ]
    assert read(bhttp.ResponseParser, [bytes.fromhex("0140c8")]) == [ResponseHead(200), End()]


# --- round trips

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=30).map(
    lambda value: value.translate(None, b"\x00\r\n").strip(b" \t"),
)
FIELDS = st.lists(st.tuples(TOKENS, VALUES), max_size=6).map(tuple)
REQUESTS = st.builds(
    RequestHead,
    method=st.sampled_from([b"GET", b"POST", b"QUERY", b"OPTIONS"]),
    scheme=st.sampled_from([b"http", b"https"]),
    authority=st.sampled_from([b"", b"example.com", b"[::1]:8443", b"user@host"]),
    path=st.one_of(st.just(b"*"), TOKENS.map(lambda token: b"/" + token + b"?a=%20")),
    fields=FIELDS,
)
RESPONSES = st.builds(ResponseHead, status=st.integers(200, 599), fields=FIELDS)
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def expected(head: object, body: bytes, trailers: bhttp.Fields) -> list[object]:
    return [head, *([body] if body else []), End(trailers)]


@settings(deadline=None)
@given(head=REQUESTS, body=st.binary(max_size=300), trailers=FIELDS, pad=st.integers(0, 40), cuts=CUTS)
def test_requests_of_known_length_come_back_however_they_are_cut(
    head: RequestHead, body: bytes, trailers: bhttp.Fields, pad: int, cuts: list[int]
) -> None:
    message = bhttp.encode_request(head, body, trailers) + bytes(pad)
    assert read(bhttp.RequestParser, cut(message, cuts)) == expected(head, body, trailers)


@settings(deadline=None)
@given(head=REQUESTS, pieces=st.lists(st.binary(max_size=90), max_size=5), trailers=FIELDS, cuts=CUTS)
def test_requests_of_indeterminate_length_come_back_however_they_are_cut(
    head: RequestHead, pieces: list[bytes], trailers: bhttp.Fields, cuts: list[int]
) -> None:
    message = bhttp.request_start(head) + b"".join(map(bhttp.content, pieces)) + bhttp.end(trailers)
    assert read(bhttp.RequestParser, cut(message, cuts)) == expected(head, b"".join(pieces), trailers)


INFORMATIONAL = st.lists(st.builds(Informational, status=st.integers(100, 199), fields=FIELDS), max_size=3)


@settings(deadline=None)
@given(head=RESPONSES, ahead=INFORMATIONAL, body=st.binary(max_size=300), trailers=FIELDS, cuts=CUTS)
def test_answers_of_both_lengths_come_back_however_they_are_cut(
    head: ResponseHead, ahead: list[Informational], body: bytes, trailers: bhttp.Fields, cuts: list[int]
) -> None:
    known = bhttp.encode_response(head, body, trailers, informational=ahead)
    opened = bhttp.response_start(head, ahead) + bhttp.content(body) + bhttp.end(trailers)
    for message in (known, opened):
        assert read(bhttp.ResponseParser, cut(message, cuts)) == ahead + expected(head, body, trailers)


def test_informational_answers_can_be_sent_before_the_head_is_known() -> None:
    fields = ((b"blindbox-pad", b"0" * 64),)
    message = (
        bhttp.informational(102, fields, first=True)
        + bhttp.informational(102, fields, first=False)
        + bhttp.response_start(ResponseHead(204), first=False)
        + bhttp.end()
    )
    assert read(bhttp.ResponseParser, bytewise(message)) == [
        Informational(102, fields),
        Informational(102, fields),
        ResponseHead(204),
        End(),
    ]


def test_events_come_as_soon_as_their_bytes_have() -> None:
    """A stream is handed on while it is still running; nothing waits for the end."""
    parser = bhttp.RequestParser()
    assert parser.feed(bhttp.request_start(POST)) == [POST]
    assert parser.feed(bhttp.content(b"some")) == [b"some"]
    whole = bhttp.content(b"more")
    assert parser.feed(whole[:3]) == [b"mo"]
    assert parser.feed(whole[3:]) == [b"re"]
    assert parser.feed(bhttp.end()) == [End()]
    assert not parser.finished
    assert parser.close() == []
    assert parser.finished


def test_names_are_written_in_lower_case_and_values_without_outer_white_space() -> None:
    """RFC 9113 §8.2.1, which RFC 9292 §3.6 asks for."""
    head = RequestHead(b"GET", b"http", b"a", b"/", ((b"X-Mixed", b" \tvalue "),))
    assert read(bhttp.RequestParser, [bhttp.encode_request(head)])[0].fields == ((b"x-mixed", b"value"),)


# --- messages that end too early, or go on too long

WHOLE = {
    "known": bhttp.encode_request(POST, b"a body", [(b"trailer", b"text")]),
    "indeterminate": bhttp.request_start(POST)
    + bhttp.content(b"a body")
    + bhttp.content(b"in two pieces")
    + bhttp.end([(b"trailer", b"text")]),
}


@pytest.mark.parametrize("framing", WHOLE)
def test_a_message_cut_at_any_byte_is_not_whole(framing: str) -> None:
    """C-28: except where RFC 9292 §3.8 lets a message end: after its head and after its content."""
    message = WHOLE[framing]
    accepted = []
    for size in range(len(message)):
        parser = bhttp.RequestParser()
        parser.feed(message[:size])
        assert not parser.finished
        try:
            parser.close()
        except TruncatedMessage:
            continue
        accepted.append(message[size:])
    if framing == "known":
        after_control, after_fields, after_content = accepted
        assert after_control.endswith(after_fields)
        assert after_fields == b"\x06a body" + after_content
    else:
        after_fields, after_content = accepted
        assert after_fields.endswith(after_content)
    assert after_content.endswith(b"trailer\x04text" + (b"" if framing == "known" else b"\x00"))


@pytest.mark.parametrize("framing", WHOLE)
def test_padding_must_be_zero(framing: str) -> None:
    """C-29: nothing may be said after the end of a message."""
    read(bhttp.RequestParser, [WHOLE[framing] + bytes(5000)])
    for tail in (b"\x01", bytes(4999) + b"\x01", KNOWN_REQUEST):
        with pytest.raises(MalformedMessage):
            read(bhttp.RequestParser, [WHOLE[framing] + tail])


def test_a_parser_that_failed_or_ended_takes_nothing_more() -> None:
    failed = bhttp.RequestParser()
    with pytest.raises(MalformedMessage):
        failed.feed(b"\x07")
    for again in (lambda: failed.feed(KNOWN_REQUEST), failed.close):
        with pytest.raises(MalformedMessage):
            again()
    ended = bhttp.RequestParser()
    ended.feed(KNOWN_REQUEST)
    ended.close()
    with pytest.raises(MalformedMessage):
        ended.feed(b"\x00")


# --- messages that may not be read


def raw_request(
    method: bytes = b"GET",
    scheme: bytes = b"http",
    authority: bytes = b"a",
    path: bytes = b"/",
    lines: Iterable[tuple[bytes, bytes]] = (),
    framing: int = 0,
) -> bytes:
    """A request as `encode_request` would never write it."""

    def prefixed(value: bytes) -> bytes:
        return varint.encode(len(value)) + value

    fields = b"".join(prefixed(name) + prefixed(value) for name, value in lines)
    section = prefixed(fields) if framing == 0 else fields + b"\x00"
    control = b"".join(map(prefixed, (method, scheme, authority, path)))
    return varint.encode(framing) + control + section + b"\x00\x00"


FORBIDDEN_FIELDS = [
    (b"Upper", b"x"),
    (b"", b"x"),
    (b":authority", b"x"),
    (b"with space", b"x"),
    (b"colon:", b"x"),
    (b"nul\x00", b"x"),
    (b"line\r\n", b"x"),
    (b"\xff", b"x"),
    (b"x", b"a\rb"),
    (b"x", b"a\nb"),
    (b"x", b"a\r\nb: c"),
    (b"x", b"a\x00b"),
    (b"x", b" leading"),
    (b"x", b"trailing\t"),
]


@pytest.mark.parametrize("framing", [0, 2], ids=["known", "indeterminate"])
@pytest.mark.parametrize("line", FORBIDDEN_FIELDS, ids=repr)
def test_a_field_that_http_would_refuse_is_refused(line: tuple[bytes, bytes], framing: int) -> None:
    """RFC 9292 §3.6: no upper case, no pseudo-field, no line break that would become a field of its own."""
    read(bhttp.RequestParser, [raw_request(lines=[(b"fine", b"fine")], framing=framing)])
    if framing == 2 and line[0] == b"":
        return  # there an empty name is how a section ends
    with pytest.raises(MalformedMessage):
        read(bhttp.RequestParser, [raw_request(lines=[(b"fine", b"fine"), line], framing=framing)])


@pytest.mark.parametrize(
    "part",
    [
        {"method": b""},
        {"method": b"GET /"},
        {"method": b"G\nT"},
        {"scheme": b""},
        {"scheme": b"HTTP"},
        {"scheme": b"http://"},
        {"authority": b"a b"},
        {"authority": b"a/b"},
        {"authority": b"a\r\nb"},
        {"authority": b"\x7f"},
        {"path": b""},
        {"path": b"no-slash"},
        {"path": b"/a b"},
        {"path": b"/a\r\nb"},
        {"path": b"/\x00"},
        {"path": b"/#fragment"},
        {"path": b"/\xc3\xa9"},
        {"path": b"**"},
    ],
    ids=repr,
)
def test_control_data_that_http_would_refuse_is_refused(part: dict[str, bytes]) -> None:
    """RFC 9292 §3.4, both when reading and when writing."""
    with pytest.raises(MalformedMessage):
        read(bhttp.RequestParser, [raw_request(**part)])  # type: ignore[arg-type]
    whole = {"method": b"GET", "scheme": b"http", "authority": b"a", "path": b"/", **part}
    with pytest.raises(MalformedMessage):
        bhttp.encode_request(RequestHead(**whole))  # type: ignore[arg-type]


def test_messages_that_could_not_be_read_are_not_written() -> None:
    for line in ((b"bad name", b"x"), (b"x", b"a\r\nb"), (b"", b"x"), (b":path", b"/")):
        for write in (bhttp.encode_request, bhttp.request_start):
            with pytest.raises(MalformedMessage):
                write(RequestHead(b"GET", b"http", b"a", b"/", (line,)))
    for status in (0, 99, 100, 199, 600):
        with pytest.raises(MalformedMessage):
            bhttp.encode_response(ResponseHead(status))
    for status in (99, 200):
        with pytest.raises(MalformedMessage):
            bhttp.informational(status, first=True)
    with pytest.raises(MalformedMessage):
        bhttp.end([(b"x", b"y")] * (bhttp.MAX_FIELDS + 1))
    with pytest.raises(MalformedMessage):
        bhttp.encode_request(RequestHead(b"GET", b"http", b"a", b"/" + b"y" * bhttp.MAX_HEAD))


@pytest.mark.parametrize("status", [0, 1, 99, 600, 999, 2**40])
@pytest.mark.parametrize("framing", [1, 3])
def test_a_status_that_is_none_is_refused(framing: int, status: int) -> None:
    with pytest.raises(MalformedMessage):
        read(bhttp.ResponseParser, [varint.encode(framing) + varint.encode(status) + bytes(8)])


@PARSERS
@pytest.mark.parametrize("framing", [4, 5, 63, 64, 2**61])
def test_an_unknown_framing_is_refused(parser: Parser, framing: int) -> None:
    with pytest.raises(MalformedMessage):
        parser().feed(varint.encode(framing))


def test_requests_and_answers_are_not_taken_for_each_other() -> None:
    for message in (KNOWN_REQUEST, OPEN_REQUEST):
        with pytest.raises(MalformedMessage):
            bhttp.ResponseParser().feed(message)
    for message in (KNOWN_RESPONSE, OPEN_RESPONSE):
        with pytest.raises(MalformedMessage):
            bhttp.RequestParser().feed(message)


def test_a_longer_spelling_of_a_length_is_refused_wherever_it_stands() -> None:
    """C-30: framing, control data, fields, content and trailers."""
    message = WHOLE["known"]
    read(bhttp.RequestParser, [message])
    lengths = [0, 1, message.index(b"\x04http"), message.index(b"\x06a body"), message.index(b"\x04text")]
    for at in lengths:
        longer = message[:at] + b"\x40" + message[at:]
        with pytest.raises(SealingError):
            read(bhttp.RequestParser, [longer])
    with pytest.raises(MalformedMessage, match="shortest"):
        bhttp.RequestParser().feed(b"\x40\x00")


LARGEST = varint.encode(2**62 - 1)


@pytest.mark.parametrize(
    "start",
    [
        b"\x00" + LARGEST,
        b"\x00\x03GET\x04http\x01a\x01/" + LARGEST,
        b"\x00\x03GET\x04http\x01a\x01/\x0a" + LARGEST + b"12",
        b"\x02\x03GET\x04http\x01a\x01/" + LARGEST,
        b"\x02\x03GET\x04http\x01a\x01/\x01x" + LARGEST,
        b"\x00\x03GET\x04http\x01a\x01/\x00\x00" + LARGEST,
    ],
    ids=["method", "fields", "name", "open name", "open value", "trailers"],
)
def test_an_enormous_length_is_refused_without_waiting_for_it(start: bytes) -> None:
    """C-30: nothing is allocated for a length of 2^62 - 1."""
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            bhttp.RequestParser().feed(start)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_content_of_an_enormous_length_is_taken_as_it_comes_and_misses_its_end() -> None:
    """C-30: content has no limit here, and no memory is taken for what was only announced."""
    parser = bhttp.RequestParser()
    tracemalloc.start()
    try:
        events = parser.feed(b"\x00\x03GET\x04http\x01a\x01/\x00" + LARGEST + b"some")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert events[1:] == [b"some"]
    assert peak < 1 << 20
    with pytest.raises(TruncatedMessage):
        parser.close()


@pytest.mark.parametrize("framing", [0, 2], ids=["known", "indeterminate"])
def test_a_head_has_at_most_so_many_fields_and_bytes(framing: int) -> None:
    """SPEC §5: 1024 fields, and 64 KiB of control data or fields."""
    read(bhttp.RequestParser, [raw_request(lines=[(b"x", b"")] * bhttp.MAX_FIELDS, framing=framing)])
    with pytest.raises(MalformedMessage, match="fields"):
        read(
            bhttp.RequestParser, [raw_request(lines=[(b"x", b"")] * (bhttp.MAX_FIELDS + 1), framing=framing)]
        )
    half = bhttp.MAX_HEAD // 2
    read(bhttp.RequestParser, [raw_request(lines=[(b"x", b"y" * half)], framing=framing)])
    with pytest.raises(MalformedMessage):
        read(bhttp.RequestParser, [raw_request(lines=[(b"x", b"y" * half)] * 2, framing=framing)])
    with pytest.raises(MalformedMessage):
        read(bhttp.RequestParser, [raw_request(path=b"/" + b"y" * bhttp.MAX_HEAD, framing=framing)])


def test_a_section_that_is_longer_than_its_lines_is_refused() -> None:
    """C-30: a field line may not reach beyond its section, nor be cut by it."""
    lines = b"\x01a\x01b\x01c\x01d"
    start = b"\x00\x03GET\x04http\x01a\x01/"
    read(bhttp.RequestParser, [start + varint.encode(len(lines)) + lines + b"\x00\x00"])
    for size in (1, 2, 3, 5, 6, 7):
        with pytest.raises(MalformedMessage):
            read(bhttp.RequestParser, [start + varint.encode(size) + lines + b"\x00\x00"])


STARTS = st.sampled_from([b"", b"\x00", b"\x01", b"\x02", b"\x03", KNOWN_REQUEST[:40], OPEN_RESPONSE[:60]])


@PARSERS
@settings(max_examples=400, deadline=None)
@given(start=STARTS, noise=st.binary(max_size=200), cuts=CUTS)
@example(start=b"", noise=b"", cuts=[])
def test_noise_is_read_or_refused_and_never_breaks_a_parser(
    parser: Parser, start: bytes, noise: bytes, cuts: list[int]
) -> None:
    refused: SealingError | None = None
    try:
        read(parser, cut(start + noise, cuts))
    except (MalformedMessage, TruncatedMessage) as error:
        refused = error
    assert refused is None or str(refused)


def test_reading_byte_by_byte_costs_no_more_than_in_proportion() -> None:
    """A long head and a long body in the smallest pieces there are: a quadratic reader would need minutes."""
    head = RequestHead(b"GET", b"http", b"a", b"/", ((b"x", b"y" * 60000),))
    message = bhttp.encode_request(head, b"z" * 100_000)
    assert read(bhttp.RequestParser, bytewise(message)) == [head, b"z" * 100_000, End()]


# --- padding


@pytest.mark.parametrize(
    ("total", "padded"),
    [
        (0, 1024),
        (1, 1024),
        (1024, 1024),
        (1025, 1152),
        (1152, 1152),
        (1153, 1280),
        (2047, 2048),
        (2048, 2048),
        (2049, 2304),
        (1_000_000, 1_048_576),
        (1_048_577, 1_179_648),
    ],
)
def test_a_message_grows_to_the_next_eighth_step(total: int, padded: int) -> None:
    """SPEC §5.2."""
    assert total + bhttp.padding_for(total) == padded


@given(total=st.integers(0, 2**40), least=st.sampled_from([512, 1024]))
def test_padded_totals_are_few_and_cost_at_most_an_eighth(total: int, least: int) -> None:
    padded = total + bhttp.padding_for(total, least=least)
    assert padded >= max(total, least)
    assert padded == least or padded * 8 <= total * 9 + 8
    while padded % 2 == 0:
        padded //= 2
    assert padded < 16  # a power of two times 8 to 15 eighths
    assert bhttp.padding_for(total + bhttp.padding_for(total, least=least), least=least) == 0


@given(
    frames=st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 60)), max_size=6),
    cuts=CUTS,
)
def test_padding_frames_give_back_their_data_however_they_are_cut(
    frames: list[tuple[bytes, int]], cuts: list[int]
) -> None:
    """SPEC §5.5."""
    wire = b"".join(bhttp.frame(data, pad) for data, pad in frames)
    unframer = bhttp.Unframer()
    assert b"".join(map(unframer.feed, cut(wire, cuts))) == b"".join(data for data, _ in frames)
    unframer.close()


def test_padding_frames_look_as_the_specification_says() -> None:
    assert bhttp.frame(b"data", 3) == b"\x00\x04\x00\x03data\x00\x00\x00"
    for data, pad in ((bytes(65536), 0), (b"", 65536), (b"", -1)):
        with pytest.raises(ValueError, match="padding frame"):
            bhttp.frame(data, pad)


def test_content_that_ends_within_a_padding_frame_is_not_whole() -> None:
    """C-28: at any byte of a frame."""
    wire = bhttp.frame(b"one", 2) + bhttp.frame(b"two", 2)
    for size in range(len(wire)):
        unframer = bhttp.Unframer()
        unframer.feed(wire[:size])
        if size in (0, len(wire) // 2):
            unframer.close()
        else:
            with pytest.raises(TruncatedMessage):
                unframer.close()


def test_padding_in_a_frame_must_be_zero() -> None:
    with pytest.raises(MalformedMessage):
        bhttp.Unframer().feed(b"\x00\x01\x00\x03x\x00\x01\x00")


@given(noise=st.binary(max_size=100), cuts=CUTS)
def test_noise_is_unframed_or_refused(noise: bytes, cuts: list[int]) -> None:
    unframer = bhttp.Unframer()
    refused: SealingError | None = None
    try:
        for piece in cut(noise, cuts):
            assert len(unframer.feed(piece)) <= len(piece)
        unframer.close()
    except (MalformedMessage, TruncatedMessage) as error:
        refused = error
    assert refused is None or str(refused)
