"""Models made ready for OpenVINO: once, whole or not at all, and saying what PyTorch says."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclave_app.engines import Sampling, Update, Work
from enclave_app.engines.export import MANIFEST, Job, export, exported
from enclave_app.models import Model, UnusableModel
from enclave_app.settings import Settings
from tests.kit.exports import ready
from tests.kit.models import FAMILIES, tiny, tiny_llama
from tests.kit.process import gone

CHECKOUT = Path(__file__).resolve().parents[2]
PROMPTS = ([5, 17, 230, 8, 44], [(7 * at) % 290 + 3 for at in range(80)])  # the second passes sliding windows


# --- what comes out says what PyTorch says ----------------------------------------------------------


@pytest.fixture(scope="module")
def irs() -> dict[str, Path]:
    return dict(zip(FAMILIES, ready([tiny(family) for family in FAMILIES]), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_says_what_torch_says_token_for_token(family: str, irs: dict[str, Path]) -> None:
    from enclave_app.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(str(irs[family]), precision="full", threads=1, kv_cache_mib=8, most_sequences=4)
    sampling = Sampling(max_new_tokens=32, do_sample=False, ignore_end=True)
    for key, ids in enumerate(PROMPTS):
        engine.start(key, Work(tuple(ids), sampling))
    said: dict[int, list[int]] = {key: [] for key in range(len(PROMPTS))}
    while engine.busy():
        for update in engine.step():
            assert isinstance(update, Update)
            said[update.key] += [token.id for token in update.tokens]
    assert list(said.values()) == [_greedy(tiny(family), ids, 32) for ids in PROMPTS]


def _greedy(folder: Path, ids: list[int], count: int) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said: list[int] = []
    cache, asked = None, ids
    with torch.no_grad():
        while len(said) < count:
            out = model(torch.tensor([asked]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            said.append(int(out.logits[0, -1].argmax()))
            asked = said[-1:]
    return said


def test_the_command_prepares_a_model_with_a_bar_and_a_start_finds_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_llama(), tmp_path / "tiny"))
    place = tmp_path / "exports"
    seen = _on_a_terminal("export", str(folder), str(place), "--weights", "int8")
    assert "Preparing tiny (once): compressing …" in seen
    assert "Preparing tiny (once): ready |████████|" in seen
    capfd.readouterr()
    made = exported(Model.at(folder), Settings(exports_dir=place))  # nothing is made: it takes no second
    assert str(made) in seen
    assert capfd.readouterr() == ("", "")
    manifest = json.loads((made / MANIFEST).read_bytes())
    held = {path.name for path in made.iterdir()} - {MANIFEST}
    assert held == set(manifest["files"])
    assert {"openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "tokenizer.json"} <= held
    assert (made / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert manifest["weights"] == "int8"
    assert 'element_type="u8"' in (made / "openvino_model.xml").read_text()


def _on_a_terminal(*arguments: str) -> str:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "enclave_app.models", *arguments],
        cwd=CHECKOUT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux's way to say that nobody holds the other side
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    assert process.wait(240) == 0, seen.decode()
    return seen.decode()


def test_an_architecture_that_cannot_be_exported_is_named_with_the_way_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import ReformerConfig, ReformerModelWithLMHead

    details: dict[str, Any] = dict(  # noqa: C408 - as arguments they are read more easily
        vocab_size=320, hidden_size=32, attention_head_size=8, num_attention_heads=2, feed_forward_size=32,
        attn_layers=["local"], axial_pos_embds=False, is_decoder=True, max_position_embeddings=64,
    )  # fmt: skip
    ReformerModelWithLMHead(ReformerConfig(**details)).save_pretrained(tmp_path / "model")
    capfd.readouterr()
    with pytest.raises(UnusableModel, match=r"reformer.*BLINDBOX_ENGINE=torch"):
        exported(Model.at(tmp_path / "model"), Settings(exports_dir=tmp_path / "exports"))
    # No terminal here: plain lines.
    assert "Preparing model for this machine (once): exporting …" in capfd.readouterr().err
    assert list((tmp_path / "exports").glob("[!.]*")) == []
    assert [path for path in (tmp_path / "exports").iterdir() if path.is_dir()] == []
    # The command says the same, and of a path as people type it.
    ended = subprocess.run(
        [sys.executable, "-m", "enclave_app.models", "export", "model", "exports"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "reformer" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- once, whole or not at all; the writer is a fast one ----------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.at(Path(shutil.copytree(tiny_llama(), tmp_path / "model")))


class Writer:
    """Writes two files where the real one writes an IR, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, job: Job) -> None:
        self.times += 1
        (job.destination / "openvino_model.xml").write_text(f"<net {job.weights}/>")
        (job.destination / "openvino_model.bin").write_bytes(b"weights" * 1000)


def test_an_export_is_made_once(model: Model, tmp_path: Path) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    assert export(model, "int8", [tmp_path / "exports"], write) == first
    assert write.times == 1
    assert export(model, "bf16", [tmp_path / "exports"], write) != first


def _touch(folder: Path) -> None:
    os.utime(folder / "model.safetensors", (1, 1))


def _another_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


@pytest.mark.parametrize(
    ("change", "times"),
    [
        (_touch, 1),  # the same bytes
        (_another_weight, 2),  # one bit of one weight, the same size
        (_another_template, 2),
    ],
)
def test_what_is_made_again_is_what_has_other_bytes(
    change: Callable[[Path], None], times: int, model: Model, tmp_path: Path
) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    change(model.folder)
    again = export(Model.at(model.folder), "int8", [tmp_path / "exports"], write)
    assert write.times == times
    assert (again == first) == (times == 1)


def test_a_model_that_was_moved_finds_its_export(model: Model, tmp_path: Path) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    moved = Model.at(Path(shutil.copytree(model.folder, tmp_path / "elsewhere" / "model")))
    assert export(moved, "int8", [tmp_path / "exports"], write) == first
    assert write.times == 1


def test_another_version_of_an_exporter_makes_it_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert export(model, "int8", [tmp_path / "exports"], write) != first
    assert write.times == 2


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml", MANIFEST])
@pytest.mark.parametrize("damage", [_cut, _flip, Path.unlink])
def test_a_damaged_export_is_noticed_and_made_again(
    damage: Callable[[Path], None], name: str, model: Model, tmp_path: Path
) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    damage(first / name)
    assert export(model, "int8", [tmp_path / "exports"], write) == first
    assert write.times == 2
    assert (first / "openvino_model.bin").read_bytes() == b"weights" * 1000
    assert export(model, "int8", [tmp_path / "exports"], write) == first
    assert write.times == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", '{"blindbox-export": 1}', "[" * 5000, '{"files": {"../x": {}}}', "\0"],
)
def test_a_manifest_that_is_none_is_no_export(content: str, model: Model, tmp_path: Path) -> None:
    write = Writer()
    first = export(model, "int8", [tmp_path / "exports"], write)
    (first / MANIFEST).write_text(content)
    assert export(model, "int8", [tmp_path / "exports"], write) == first
    assert write.times == 2


def _process(model: Model, place: Path, body: str) -> subprocess.Popen[str]:
    """A process that exports with a writer of this body (`job`, `log`: a file to append to)."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
from enclave_app.engines.export import export
from enclave_app.models import Model
log = Path({str(place.parent / "log")!r})
def write(job):
    with log.open("a") as file:
        file.write("x")
    (job.destination / "openvino_model.bin").write_bytes(b"weights" * 1000)
{textwrap.indent(textwrap.dedent(body), "    ")}
print(export(Model.at(Path({str(model.folder)!r})), "int8", [Path({str(place)!r})], write))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_at_once_make_one(model: Model, tmp_path: Path) -> None:
    place = tmp_path / "exports"
    both = [_process(model, place, "time.sleep(1)") for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert said[0][0] == said[1][0] != ""
    assert (tmp_path / "log").read_text() == "x"
    assert sum("is being prepared by another process" in complaint for _, complaint in said) <= 1


def test_who_is_killed_leaves_nothing_that_is_taken_for_a_model(model: Model, tmp_path: Path) -> None:
    place = tmp_path / "exports"
    process = _process(model, place, "os.kill(os.getpid(), signal.SIGKILL)")
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert next(path.name for path in place.iterdir() if path.is_dir()).startswith(".")
    write = Writer()
    made = export(model, "int8", [place], write)
    assert write.times == 1
    assert [path for path in place.iterdir() if path.is_dir()] == [made]  # the remains are swept away


# --- where, and what is said when it does not go ------------------------------------------------------


def test_an_image_s_export_is_found_where_nothing_can_be_written(model: Model, tmp_path: Path) -> None:
    write = Writer()
    models_dir = model.folder.parent
    first = export(model, "int8", [models_dir / "exported"], write)
    nowhere = Path("/proc/nowhere")
    found = exported(model, Settings(models_dir=models_dir, exports_dir=nowhere))
    assert found == first


def test_a_model_outside_of_models_dir_is_kept_beside_itself(model: Model, tmp_path: Path) -> None:
    first = export(model, "int8", [tmp_path / "exported"], Writer())
    assert exported(model, Settings(models_dir=Path("/proc/models"))) == first


def test_where_nothing_can_be_written_the_setting_is_named(model: Model) -> None:
    with pytest.raises(
        UnusableModel, match=r"/proc/nowhere.*BLINDBOX_EXPORTS_DIR.*enclave_app.models export"
    ):
        export(model, "int8", [Path("/proc/nowhere")], Writer())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_as_such_and_leaves_nothing(model: Model, tmp_path: Path) -> None:
    def write(job: Job) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(UnusableModel, match=r"disk is full.*BLINDBOX_EXPORTS_DIR"):
        export(model, "int8", [tmp_path / "exports"], write)
    assert [path for path in (tmp_path / "exports").iterdir() if path.is_dir()] == []


def test_a_disk_that_is_too_small_is_known_before(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1 << 20))
    write = Writer()
    with pytest.raises(UnusableModel, match=r"needs 0\.1 GiB of disk"):
        export(model, "int8", [tmp_path / "exports"], write)
    assert write.times == 0


def _children() -> set[int]:
    listing = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return {int(pid) for pid in listing.split()}


def test_a_child_that_the_kernel_kills_means_too_little_memory(model: Model, tmp_path: Path) -> None:
    before, ended = _children(), threading.Event()
    thread = threading.get_native_id()

    def kill() -> None:
        while not ended.is_set():
            listing = Path(f"/proc/self/task/{thread}/children").read_text()
            for pid in {int(pid) for pid in listing.split()} - before:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(UnusableModel, match=r"not enough memory.*larger machine"):
            exported(model, Settings(exports_dir=tmp_path / "exports"))
    finally:
        ended.set()
        killer.join()


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("std::bad_alloc"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (RuntimeError("basic_ios::clear: No space left on device"), "disk"),
        (ValueError("Trying to export a reformer model"), "unusable"),
    ],
)
def test_what_libraries_raise_is_sorted(error: Exception, how: str) -> None:
    import io

    from enclave_app import pipe
    from enclave_app.engines.export_child import _fail

    up = io.BytesIO()
    _fail(up, error)
    up.seek(0)
    assert pipe.receive(up)["say"] == how


def test_the_work_ends_with_the_one_who_wanted_it(model: Model, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from enclave_app.engines.export import export; "
        f"from enclave_app.models import Model; "
        f"export(Model.at(Path({str(model.folder)!r})), 'int8', [Path({str(tmp_path / 'exports')!r})])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "reading weights" in process.stderr.readline()
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(listing) == 1
    process.kill()
    process.communicate(timeout=240)
    deadline = time.monotonic() + 60
    while not gone(int(listing[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(int(listing[0]))
