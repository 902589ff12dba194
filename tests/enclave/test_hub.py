"""Data sets by their name on a hub: only where the operator allows it, only its data, from nowhere else."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blindbox_data import Wanted
from enclave_app.engines.echo import ByteTokenizer
from enclave_app.hub import DataSet, HuggingFaceHub, NoHub, hub_of, line
from enclave_app.hub.layout import checked, chosen
from enclave_app.hub.line import Unwanted
from enclave_app.jobs import Order, Source
from enclave_app.jobs.reading import Stopped, lesson_of, rows_of_all
from enclave_app.refusals import Refusal
from enclave_app.settings import InvalidSettings, Settings
from enclave_app.training import Recipe
from tests.kit.hub import Hub, body, status
from tests.kit.jobs import ANN, over, rooms_with_rows, run
from tests.kit.rooms import client_of, error_of, rooms_in

ROWS = [{"question": f"Where is mill {n}?", "answer": f"At weir {n}."} for n in range(40)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as standing_in:
        yield standing_in


def found(hub: Hub, config: str | None = None, most: int = 1 << 20, name: str = "org/rows") -> DataSet:
    return HuggingFaceHub(hub.endpoint, most).find(name, config)


def refused(hub: Hub, config: str | None = None, **more: Any) -> Refusal:
    """What finding it and fetching it ends with."""
    with pytest.raises(Refusal) as caught:
        list(found(hub, config, **more).files())
    return caught.value


def questions(told: DataSet, wanted: Wanted | None = None) -> list[str]:
    files = ((each.path, each.file, each.form) for each in told.files())
    return [row["question"] for _, row in rows_of_all(files, wanted or Wanted())]


# --- which names ------------------------------------------------------------------------------


def test_without_leave_nothing_is_fetched_from_a_hub() -> None:
    """S-19: the refusal comes from a function that opens no socket, and says what to do instead."""
    assert isinstance(hub_of(Settings(engine="echo")), NoHub)
    assert isinstance(hub_of(Settings(engine="echo", allow_outbound=True)), HuggingFaceHub)
    with pytest.raises(Refusal, match="POST /v1/files"):
        NoHub().find("org/name", None)


@pytest.mark.parametrize(
    "name",
    [
        "name", "a/b/c", "../x", "a/..", "http://evil/x", "http:\\\\evil", "//evil/x", "/etc/passwd", "a/b@c",
        "org/na me", "org/näme", "org/a?b", "org/a#b", "org/a%2fb", "org/a\n", "@evil/x",
    ],
)  # fmt: skip
def test_only_plain_names_ever_reach_the_hub(hub: Hub, name: str) -> None:
    """S-19: neither addresses nor paths."""
    error = refused(hub, name=name)
    assert "ORG/NAME" in error.message
    assert (error.code, error.param, error.status) == ("dataset_not_found", "dataset_name", 400)
    assert not hub.asked


@pytest.mark.parametrize(
    "text",
    ["http://huggingface.co", "https://", "https://a/b", "https://a@b", "https://a?b", "http://127.0.0.1.evil",
     "ftp://a", "https://a b", "file:///etc", "http://127.0.0.1:80@evil"],
)  # fmt: skip
def test_a_hub_is_an_https_address_or_on_this_machine(text: str) -> None:
    with pytest.raises(InvalidSettings, match="BLINDBOX_HUB_ENDPOINT"):
        Settings.from_environ({"BLINDBOX_HUB_ENDPOINT": text})


# --- what is read -----------------------------------------------------------------------------


def test_the_stand_in_is_asked_as_the_hubs_own_client_asks(hub: Hub) -> None:
    """The listing is the one that `huggingface_hub` understands, and the files lie where it would look."""
    from huggingface_hub import HfApi, hf_hub_url

    commit = hub.put("org/rows", {"data/train one.jsonl": jsonl(ROWS[:2]), "README.md": b"# rows"})
    told = HfApi(endpoint=hub.endpoint, token=False).dataset_info("org/rows", files_metadata=True)
    assert told.sha == commit
    assert [each.rfilename for each in told.siblings or []] == ["data/train one.jsonl", "README.md"]
    theirs = list(hub.asked)
    hub.asked.clear()
    assert questions(found(hub)) == [row["question"] for row in ROWS[:2]]
    assert hub.asked[0] == theirs[0]
    url = hf_hub_url(
        "org/rows", "data/train one.jsonl", repo_type="dataset", revision=commit, endpoint=hub.endpoint
    )
    assert url.endswith("/data/train%20one.jsonl")
    assert f"/datasets/org/rows/resolve/{commit}/data/train one.jsonl" in hub.asked


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv"])
def test_all_forms_are_read_as_uploads_are(hub: Hub, ending: str) -> None:
    head, rows = "question,answer\n", ROWS[:5]
    data = {
        "parquet": parquet(rows),
        "jsonl": jsonl(rows),
        "json": json.dumps(rows).encode(),
        "csv": (head + "".join(f"{row['question']},{row['answer']}\n" for row in rows)).encode(),
    }[ending]
    hub.put("org/rows", {f"train.{ending}": data, "test.jsonl": b"not read", "LICENSE": b"free"})
    assert questions(found(hub)) == [row["question"] for row in rows]


def test_files_are_fetched_when_their_rows_are_needed_and_are_all_of_one_commit(hub: Hub) -> None:
    shards = {f"data/train-0000{n}-of-00004.parquet": parquet(ROWS[10 * n : 10 * n + 10]) for n in range(4)}
    commit = hub.put("org/rows", shards)
    told = found(hub)
    hub.put("org/rows", {"train.jsonl": jsonl([{"question": "newer", "answer": "x"}])})
    wanted = Wanted(number=15)
    rows = rows_of_all(((each.path, each.file, each.form) for each in told.files()), wanted)
    reading = lesson_of(rows, wanted, Recipe(), ByteTokenizer())
    assert reading.report["rows_read"] == 15
    fetched = [path for path in hub.asked if path.startswith("/datasets/")]
    assert fetched == [f"/datasets/org/rows/resolve/{commit}/{path}" for path in list(shards)[:2]]
    digests = [hashlib.sha256(data).digest() for data in list(shards.values())[:2]]
    assert told.told()["sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    assert told.told()["revision"] == commit
    assert [each["sha256"] for each in told.told()["files"]] == [digest.hex() for digest in digests]


def test_an_earlier_commit_can_be_asked_for_again(hub: Hub) -> None:
    earlier = hub.put("org/rows", {"train.jsonl": jsonl(ROWS[:1])})
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS[1:2])})
    again = HuggingFaceHub(hub.endpoint, 1 << 20).find("org/rows", None, earlier)
    assert questions(again) == [ROWS[0]["question"]]
    assert questions(found(hub)) == [ROWS[1]["question"]]


def test_a_fault_is_told_with_its_file(hub: Hub) -> None:
    hub.put("org/rows", {"train-1.jsonl": jsonl(ROWS[:3]), "train-2.jsonl": b'{"question": '})
    with pytest.raises(Exception, match=r'Of "train-2.jsonl": .*line 1'):
        questions(found(hub))


# --- which files ------------------------------------------------------------------------------

CARD = b"""---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: "en/part-*.jsonl"
  - split: test
    path: en/test.jsonl
- config_name: de
  data_files: de/all.csv
- config_name: deep
  data_dir: deep
- config_name: none
  data_files: [{split: test, path: en/test.jsonl}]
- config_name: gone
  data_files: gone/**
size_categories: [n<1K]
---
# Rows
"""
SHARD = "data/train-00000-of-00001.parquet"
FILES = ["README.md", "de/all.csv", "deep/a/train/x.parquet", "deep/test.parquet", "en/part-1.jsonl",
         "en/part-2.jsonl", "en/test.jsonl"]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "card", "config", "expected"),
    [
        (["train.jsonl", "test.jsonl"], b"", None, ["train.jsonl"]),
        (["b.csv", "a.csv"], b"", "default", ["a.csv", "b.csv"]),
        ([SHARD, "train.csv"], b"", None, [SHARD]),
        (["train/x.csv", "test/train.csv"], b"", None, ["train/x.csv"]),
        (["contrain.csv", "my_train_1.json"], b"", None, ["my_train_1.json"]),
        (["en/train-1.parquet", "de/train-1.parquet"], b"", "de", ["de/train-1.parquet"]),
        (["train.csv", "train-1.jsonl", "train-2.jsonl"], b"", None, ["train-1.jsonl", "train-2.jsonl"]),
        (["rows.jsonl", "dataset_infos.json", ".cache/train.csv"], b"", None, ["rows.jsonl"]),
        (FILES, CARD, "en", ["en/part-1.jsonl", "en/part-2.jsonl"]),
        (FILES, CARD, "de", ["de/all.csv"]),
        (FILES, CARD, "deep", ["deep/a/train/x.parquet"]),
        (["a/b/x.csv", "y.csv"], b"---\nconfigs:\n- data_files: '**/*.csv'\n---\n", None,
         ["a/b/x.csv", "y.csv"]),
        (["x.csv", "y.csv"], b"---\nconfigs:\n- {config_name: a, data_files: x.csv}\n- {config_name: b, "
         b"default: true, data_files: {train: y.csv}}\n---", None, ["y.csv"]),
        (["train.csv"], b"---\nlicense: mit\n---\nconfigs:\n- of another kind", None, ["train.csv"]),
        (["x.csv", "y.csv"], b"---\nconfigs:\n- data_files: x.csv\n\ninfo:\n" + b"  a: b\n" * 30_000 + b"---",
         None, ["x.csv"]),
    ],
)  # fmt: skip
def test_the_files_of_the_split_train_are_found(
    files: list[str], card: bytes, config: str | None, expected: list[str]
) -> None:
    assert chosen(files, card, config) == expected


@pytest.mark.parametrize(
    ("files", "card", "config", "code", "words"),
    [
        (["README.md", "data.tar.gz"], b"", None, "invalid_file_format", "no Parquet"),
        (["test.csv", "validation.csv"], b"", None, "missing_split", '"test", "validation"'),
        (["en/train.csv"], b"", "eng", "unknown_config", 'Did you mean "en"'),
        (FILES, CARD, None, "unknown_config", '"en", "de"'),
        (FILES, CARD, "dee", "unknown_config", 'Did you mean "deep"'),
        (FILES, CARD, "none", "missing_split", '"test"'),
        (FILES, CARD, "gone", "invalid_file_format", "gone"),
        (["a.csv"], b"---\nconfigs: 7\n---\n", None, "invalid_file_format", "README.md"),
        (["a.csv"], b"---\nconfigs:\n- [\n---\n", None, "invalid_file_format", "README.md"),
        (["a.csv"], b"---\nconfigs:\n- data_files: 7\n---\n", None, "invalid_file_format", "README.md"),
        (["a.csv"], b"---\nconfigs:\n- data_files: ../a.csv\n---\n", None, "invalid_file_format", "default"),
        (["a.csv"], b"---\nconfigs:\n- data_files: https://evil/a.csv\n---\n", None,
         "invalid_file_format", "def"),
        (["a.csv"], b"---\nconfigs: " + b"[" * 100_000 + b"\n---\n", None,
         "invalid_file_format", "README.md"),
        (["a.csv"], b"---\nconfigs:\n- data_files: " + b"**/" * 99 + b"a\n---\n", None,
         "invalid_file_format", ""),
        (["a.csv"], b"---\nconfigs:\n- &a {x: 1}\n"
         + b"".join(b"- &%c {<<: [*%c, *%c]}\n" % (n + 1, n, n) for n in b"abcdefghijklmnopqrst") + b"---\n",
         None, "invalid_file_format", "README.md"),
        (["a.csv"], b"---\nconfigs: !!python/object/apply:os._exit [3]\n---\n", None,
         "invalid_file_format", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_told_with_what_there_is(
    files: list[str], card: bytes, config: str | None, code: str, words: str
) -> None:
    with pytest.raises(Refusal) as caught:
        chosen(files, card, config)
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.status == 400


def test_a_card_whose_patterns_would_take_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that it names are found however many there are."""
    files = [f"part/{n}.csv" for n in range(200)]
    monkeypatch.setattr("enclave_app.hub.layout._MOST_COMPARED", 1000)
    card = "---\nconfigs:\n- data_files:\n{}---\n"
    named = card.format("".join(f"  - {path}\n" for path in files))
    assert chosen(files, named.encode(), None) == sorted(files)
    wild = card.format("".join(f"  - '**/{n}?.*'\n" for n in range(20)))
    with pytest.raises(Refusal) as caught:
        chosen(files, wild.encode(), None)
    assert caught.value.code == "invalid_file_format"


@pytest.mark.parametrize(
    "files",
    [
        ["train.jsonl"], ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "test.csv"],
        ["a.csv", "b.csv"], ["train/x.csv", "test/train.csv"], ["my_train_1.json", "validation.json"],
        ["x/training-2.csv", "config.json"], ["en/train.csv", "de/train.csv"], ["contrain.csv", "train.csv"],
        ["trainer/a.csv", "b.csv"],
    ],
)  # fmt: skip
def test_the_conventions_are_those_of_the_hubs_own_library(tmp_path: Path, files: list[str]) -> None:
    from datasets.data_files import get_data_patterns, resolve_pattern

    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x", "utf-8")
    theirs = set()
    for pattern in get_data_patterns(str(tmp_path))["train"]:
        try:
            theirs |= {
                str(Path(each).relative_to(tmp_path)) for each in resolve_pattern(pattern, str(tmp_path))
            }
        except FileNotFoundError:
            continue
    assert chosen(files, b"", None) == sorted(theirs)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["squad.py", "a/B.PY", "x.pkl", "model.pt", "m.pth", "lib.so", "run.sh"])
def test_a_hub_repository_with_code_is_refused_and_none_of_it_is_fetched(hub: Hub, extra: str) -> None:
    """S-18: whatever else is in it."""
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS), extra: b"canary"})
    error = refused(hub)
    assert (error.code, error.param) == ("unsafe_dataset", "dataset_name")
    assert hub.asked == ["/api/datasets/org/rows"]


@pytest.mark.parametrize(
    "path", ["../x.csv", "/etc/x.csv", "a//b.csv", "a/./b.csv", "a\\b.csv", "a\nb.csv", ""]
)
def test_a_file_whose_name_leads_out_of_the_repository_is_refused(path: str) -> None:
    """S-17."""
    with pytest.raises(Refusal, match="leads out"):
        checked(["train.csv", path])


@pytest.mark.parametrize(
    ("answer", "code", "http"),
    [
        (status(404, "RepoNotFound"), "dataset_not_found", 400),
        (status(401), "dataset_not_found", 400),
        (status(401, "GatedRepo"), "gated_dataset", 400),
        (status(403, "GatedRepo"), "gated_dataset", 400),
        (status(429), "hub_unreachable", 503),
        (status(500), "hub_unreachable", 503),
        (body(b"<html>"), "hub_unreachable", 503),
        (body(b"[]"), "hub_unreachable", 503),
        (body(b'{"sha": "../x", "siblings": []}'), "hub_unreachable", 503),
        (body(b"{}", Content_Encoding="gzip"), "hub_unreachable", 503),
        (status(302, Location="/api/datasets/org/rows"), "hub_unreachable", 503),
        (status(302, Location="http://["), "hub_unreachable", 503),
    ],
)
def test_what_the_hub_answers_is_told_in_kind(hub: Hub, answer: Any, code: str, http: int) -> None:
    hub.answers["/api/datasets/org/rows"] = answer
    error = refused(hub)
    assert (error.code, error.status) == (code, http)
    assert code == "hub_unreachable" or error.param == "dataset_name"


def test_a_gated_file_is_told_as_that(hub: Hub) -> None:
    commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    hub.answers[f"/datasets/org/rows/resolve/{commit}/train.jsonl"] = status(401, "GatedRepo")
    assert refused(hub).code == "gated_dataset"


def test_a_hub_that_is_not_there_or_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(line, "_SILENCE", 0.2)
        with pytest.raises(Refusal, match="ReadTimeout") as caught:
            HuggingFaceHub(endpoint, 1).find("org/rows", None)
        assert (caught.value.code, caught.value.status) == ("hub_unreachable", 503)
    with pytest.raises(Refusal, match="ConnectError") as caught:
        HuggingFaceHub(endpoint, 1).find("org/rows", None)
    assert (caught.value.code, caught.value.status) == ("hub_unreachable", 503)


def test_a_renamed_data_set_is_found_where_it_has_gone(hub: Hub) -> None:
    hub.put("new/rows", {"train.jsonl": jsonl(ROWS[:1])})
    hub.answers["/api/datasets/org/rows"] = status(307, Location="/api/datasets/new/rows?blobs=true")
    commit = hub.heads["new/rows"]
    hub.answers[f"/datasets/org/rows/resolve/{commit}/train.jsonl"] = status(
        307, Location=f"/datasets/new/rows/resolve/{commit}/train.jsonl"
    )
    assert questions(found(hub)) == [ROWS[0]["question"]]


@pytest.mark.parametrize("of", ["listing", "file"])
@pytest.mark.parametrize(
    "there",
    ["http://127.0.0.1:{port}/x", "http://localhost:{port}/x", "//127.0.0.1:{port}/x", "http://user@127.0.0.1:{port}/",
     "http://[::1]:{port}/x", "https://127.0.0.1:{port}/x", "https://evil.hf.co.example/x", "file:///etc/passwd",
     "http:\\\\127.0.0.1:{port}\\x", "http://hub@127.0.0.1:{own}/x", "https://huggingface.co/x"],
)  # fmt: skip
def test_the_hub_cannot_send_the_enclave_anywhere_else(hub: Hub, there: str, of: str) -> None:
    """S-19: a listener beside the hub hears nothing, however the address to it is written."""
    with closing(socket.create_server(("127.0.0.1", 0))) as canary:
        canary.settimeout(0.05)
        commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
        place = {
            "listing": "/api/datasets/org/rows",
            "file": f"/datasets/org/rows/resolve/{commit}/train.jsonl",
        }
        address = there.format(port=canary.getsockname()[1], own=hub.endpoint.rpartition(":")[2])
        hub.answers[place[of]] = status(302, Location=address)
        error = refused(hub)
        assert (error.code, error.status) == ("hub_unreachable", 503)
        with pytest.raises(TimeoutError):
            canary.accept()


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("https://huggingface.co/x", True),
        ("https://cdn-lfs.huggingface.co/x", True),
        ("https://us.aws.cdn.hf.co:443/x", True),
        ("http://huggingface.co/x", False),
        ("https://huggingface.co:8443/x", False),
        ("https://nothf.co/x", False),
        ("https://evil.example/.hf.co", False),
        ("https://evil.example\\.hf.co/x", False),
        ("https://a@cdn.hf.co/x", False),
        ("https://cdn.hf.co.evil.example/x", False),
    ],
)
def test_the_hub_itself_may_send_us_to_its_stores_by_https_alone(address: str, allowed: bool) -> None:
    """S-19: the address that is looked at is the parsed one that would be asked."""
    import httpx

    try:
        line.Line("https://huggingface.co")._check(httpx.URL(address))
    except (Refusal, httpx.InvalidURL):
        assert not allowed
    else:
        assert allowed


def test_no_proxy_and_no_token_of_the_machine_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-19."""
    with closing(socket.create_server(("127.0.0.1", 0))) as canary:
        canary.settimeout(0.05)
        proxy = f"http://127.0.0.1:{canary.getsockname()[1]}"
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("HF_ENDPOINT", proxy)
        hub.put("org/rows", {"train.jsonl": jsonl(ROWS[:1])})
        assert questions(found(hub))
        with pytest.raises(TimeoutError):
            canary.accept()


@pytest.mark.parametrize("honest", [True, False])
def test_more_than_an_upload_may_hold_is_not_fetched(hub: Hub, honest: bool) -> None:
    commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    if not honest:
        listing = hub.listing("org/rows", commit)
        listing["siblings"][0] = {"rfilename": "train.jsonl"}
        hub.answers["/api/datasets/org/rows"] = body(json.dumps(listing).encode())
    error = refused(hub, most=1000)
    assert (error.code, error.status, error.param) == ("file_too_large", 413, "dataset_name")


def test_what_is_told_of_a_data_set_has_a_limit_in_time_of_its_own(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that drips keeps nobody for the hour that a file may take."""
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    monkeypatch.setattr(line, "_TOLD", -1.0)
    error = refused(hub)
    assert (error.code, error.status) == ("hub_unreachable", 503)
    assert len(hub.asked) == 1


def test_a_file_that_there_is_no_memory_for_is_not_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    monkeypatch.setattr("enclave_app.hub.free_bytes", lambda: 1000)
    error = refused(hub)
    assert (error.code, error.status) == ("no_memory", 503)
    assert len(hub.asked) == 1


def test_a_file_that_is_not_the_one_that_is_listed_is_not_read(hub: Hub) -> None:
    commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    hub.answers[f"/store/org/rows/{commit}/train.jsonl"] = body(jsonl(ROWS).replace(b"mill", b"moor"))
    assert "another file" in refused(hub).message


def test_a_fetch_that_nobody_wants_any_more_ends(hub: Hub) -> None:
    commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS * 100)})
    wish = threading.Event()

    def slowly(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(jsonl(ROWS))
        wish.set()
        with suppress(OSError):
            for _ in range(5000):
                handler.wfile.write(b"\n")
                time.sleep(0.02)

    hub.answers[f"/store/org/rows/{commit}/train.jsonl"] = slowly
    began = time.monotonic()
    with pytest.raises(Unwanted):
        list(found(hub).files(wish.is_set))
    assert time.monotonic() - began < 40  # and not the hundred that the rest would take


# --- a job ------------------------------------------------------------------------------------


def order(**more: Any) -> Order:
    source = Source("org/rows", hub=True)
    return Order(
        model="org/echo", training=source, recipe=Recipe(batch_size=4, epochs=1), of_house=True, **more
    )


def rooms_over(hub: Hub, folder: Path) -> Any:
    return rooms_with_rows(folder, allow_outbound=True, hub_endpoint=hub.endpoint)


def test_a_job_tells_the_commit_and_the_digest_and_leaves_no_row_on_the_disk(
    hub: Hub, tmp_path: Path
) -> None:
    """S-21: what is fetched is in memory, and what is kept of it is sealed."""
    rows = [{"question": f"canary {n}?", "answer": f"canary {n}."} for n in range(40)]
    data = parquet(rows)
    commit = hub.put("org/rows", {"data/train-00000-of-00001.parquet": data})
    rooms = rooms_over(hub, tmp_path)

    async def work() -> Any:
        job = await rooms.foreman.create(ANN, order())
        return await over(rooms.foreman, ANN, job.id)

    job = run(work())
    assert job.status == "succeeded", job.error
    digest = hashlib.sha256(hashlib.sha256(data).digest()).hexdigest()
    assert job.data["hub"] == {
        "name": "org/rows",
        "revision": commit,
        "sha256": digest,
        "files": [
            {
                "path": "data/train-00000-of-00001.parquet",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        ],
    }
    assert (job.order.training.revision, job.order.training.sha256) == (commit, digest)
    assert all(b"canary" not in each.read_bytes() for each in tmp_path.rglob("*") if each.is_file())


def test_a_job_that_goes_on_reads_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    rooms = rooms_over(hub, tmp_path)
    material = rooms.foreman.rows
    told = material.read(ANN, order()).report["hub"]
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS[:5])})
    source = Source("org/rows", hub=True, revision=commit, sha256=told["sha256"])
    begun = Order(model="org/echo", training=source, recipe=Recipe(), of_house=True)
    assert material.read(ANN, begun).report["rows_read"] == 40
    assert Order.parse(json.loads(json.dumps(begun.encode()))) == begun
    with pytest.raises(Stopped):
        material.read(ANN, begun, lambda: True)
    hub.answers[f"/store/org/rows/{commit}/train.jsonl"] = body(jsonl(ROWS).replace(b"mill", b"moor"))
    with pytest.raises(Refusal):
        material.read(ANN, begun)


def test_what_is_wrong_with_a_hubs_rows_fails_the_job_in_the_callers_words(hub: Hub, tmp_path: Path) -> None:
    hub.put("org/rows", {"train.jsonl": b"<html>no rows"})
    rooms = rooms_over(hub, tmp_path)
    with pytest.raises(Refusal, match="HTML") as caught:
        rooms.foreman.rows.read(ANN, order())
    assert (caught.value.param, caught.value.code) == ("dataset_name", "invalid_file_format")


@pytest.mark.parametrize(
    ("name", "config", "http", "code", "param"),
    [
        ("org/none", "", 400, "dataset_not_found", "dataset_name"),
        ("org/../rows", "", 400, "dataset_not_found", "dataset_name"),
        ("org/rows", "en", 400, "unknown_config", "config_name"),
        ("org/rows", "", 200, "", None),
    ],
)
def test_the_house_api_takes_a_hubs_name(
    hub: Hub, tmp_path: Path, name: str, config: str, http: int, code: str, param: str | None
) -> None:
    hub.put("org/rows", {"train.jsonl": jsonl(ROWS)})
    asked = {
        "dataset_name": name,
        "config_name": config,
        "question_column": "question",
        "answer_column": "answer",
        "number_elements_for_training": 3,
    }
    with client_of(rooms_in(tmp_path, allow_outbound=True, hub_endpoint=hub.endpoint)) as client:
        answer = client.post("/finetune", json=asked)
    if code:
        error_of(answer, http, code, param)
    else:
        assert answer.status_code == http, answer.text
