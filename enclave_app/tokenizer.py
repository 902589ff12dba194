"""
A model's tokenizer and chat template, read from its folder without PyTorch and without transformers.

The words come from `tokenizer.json` (the `tokenizers` library, the same code that transformers runs), the
template from `chat_template.jinja` or `tokenizer_config.json`, rendered in jinja2's immutable sandbox with
the names transformers gives a template. The process that answers the network stays small this way, and
starts at once.

A template is part of a model that somebody else made: it cannot leave the sandbox, takes no longer than
`SECONDS` and writes no more than `LONGEST` (threats.md A4).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import tokenizers

from .refusals import Refusal

SECONDS: Final = 5.0
LONGEST: Final = 64 << 20  # characters
_CONTEXT: Final = 6  # tokens of the prompt that are read before the answer: a word's space depends on them
_CUT: Final = "\N{REPLACEMENT CHARACTER}"
_SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_LARGEST: Final = 64 << 20


class UnusableTokenizer(Exception):
    """The folder has no tokenizer that can be read; the message says what is missing."""


class FolderTokenizer:
    """The tokenizer of one model; safe in any number of threads."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnusableTokenizer(
                f"{folder} has no tokenizer.json. Save it with a fast tokenizer "
                "(AutoTokenizer.from_pretrained(…).save_pretrained(…))."
            )
        try:
            self._words = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UnusableTokenizer(f"{path} is no tokenizer: {str(error)[:200]}") from error
        # What was set for training (cut at a length, padded to one) would change what is asked.
        self._words.no_truncation()
        self._words.no_padding()
        config = _json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # as older versions of transformers wrote it
            config |= _json(folder / "special_tokens_map.json")
        self.special: Mapping[str, str] = {
            name: text for name in _SPECIAL if (text := _token(config.get(name))) is not None
        }
        self.chat_template = _chat_template(folder, config)
        self._template = None if self.chat_template is None else _compiled(self.chat_template, folder)
        self.ends = _ends(folder, self._id_of(self.special.get("eos_token")))

        # Characters of one token at most: a text of more than so many times the context does not fit into it.
        self.longest = max(map(len, self._words.get_vocab(with_added_tokens=True)), default=1)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self._words.get_vocab_size(with_added_tokens=True))

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """`{"input_ids": …}`, as a tokenizer of transformers answers."""
        # Alone of the library's ways, the one for several texts lets other threads run meanwhile.
        (encoded,) = self._words.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids}

    def text(self, token: int) -> str:
        """A token by itself, as it is written in log probabilities."""
        return str(self._words.decode([token], skip_special_tokens=False))

    def decoder(self, prompt: Sequence[int]) -> Callable[[int], str | None]:
        """
        Takes the tokens of the answer to `prompt` one by one; gives the text that became certain.

        None means that a character is not whole yet. One that the answer's end cuts off is never told.
        """
        # Not from within a character: where a character is several tokens, its rest would be no text.
        starts = range(_CONTEXT, _CONTEXT + 4)
        before = (prompt[-count:] for count in starts if not self.decode(prompt[-count:]).startswith(_CUT))
        return _Decoding(self.decode, next(before, prompt[-_CONTEXT:]))

    def decode(self, ids: Sequence[int]) -> str:
        """All of it at once, special tokens left out."""
        return str(self._words.decode(list(ids), skip_special_tokens=True))

    def written(self, ids: Sequence[int]) -> str:
        """All of it at once, special tokens spelled out: as the model sees it."""
        return str(self._words.decode(list(ids), skip_special_tokens=False))

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
        **_: Any,
    ) -> str:
        """
        The conversation as the model was taught to read it.

        Raises `Refusal` where the template itself refuses it (many know no system message, or want roles to
        take turns).
        """
        assert not tokenize
        assert self._template is not None
        try:
            pieces = self._template.generate(
                messages=conversation,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special,
            )
            with _limited(SECONDS):
                return "".join(_bounded(pieces, LONGEST))
        except Exception as error:
            # Whatever it is: the template stumbles over these messages.
            told = f": {error}" if isinstance(error, _TemplateRefused) else "."
            raise Refusal(
                f"This model's chat template does not take these messages{told}",
                code="invalid_value",
                param="messages",
            ) from error

    def _id_of(self, text: str | None) -> int | None:
        return None if text is None else self._words.token_to_id(text)


class _TemplateRefused(Exception):
    """`raise_exception(…)` of a chat template, in the template's own constant words."""


class _TooMuch(Exception):
    """A template that takes too long, or writes too much."""


class _Decoding:
    """
    Text that has become certain, token by token.

    Decoding some tokens again is the only way to know what one adds: a space, a part of a character. As many
    are kept as were needed for what was told last.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(before)
        self._told = len(decode(self._ids))  # characters of these tokens
        self._fresh = 0  # tokens since the last that told something
        self._cuts = 0  # how many of them in a row ended within a character

    def __call__(self, token: int) -> str | None:
        self._ids.append(token)
        self._fresh += 1
        text = self._decode(self._ids)
        self._cuts = self._cuts + 1 if text.endswith(_CUT) else 0
        # A character has four bytes at most. After four tokens without an end these bytes never become one;
        # only the last may still begin another.
        certain = text.rstrip(_CUT) if self._cuts < 4 else text.removesuffix(_CUT)
        new = certain[self._told :]
        self._told = max(self._told, len(certain))
        if new and certain == text:
            self._keep(self._fresh)
        elif len(self._ids) > 64:  # nothing but special tokens, or no characters at all
            self._keep(8)
        return new or None

    def _keep(self, count: int) -> None:
        self._ids = self._ids[-count:]
        self._told = len(self._decode(self._ids).removesuffix(_CUT))
        self._fresh = 0


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what is learned in training; asking, it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own shape

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _compiled(template: str, folder: Path) -> jinja2.Template:
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )

    def refuse(message: str) -> None:
        raise _TemplateRefused(str(message)[:300])

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    world.filters["tojson"] = as_json
    world.globals["raise_exception"] = refuse
    world.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    try:
        return world.from_string(template)
    except (jinja2.TemplateError, RecursionError) as error:
        raise UnusableTokenizer(f"{folder}: the chat template is no jinja2: {str(error)[:200]}") from error


def _bounded(pieces: Iterator[str], longest: int) -> Iterator[str]:
    for piece in pieces:
        longest -= len(piece)
        if longest < 0:
            raise _TooMuch
        yield piece


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Interrupt this thread's Python code after so long: nothing else ends a loop inside a template."""
    thread = ctypes.c_ulong(threading.get_ident())
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    lock, over = threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not over:
                raise_in(thread, ctypes.py_object(_TooMuch))

    watch = threading.Timer(seconds, interrupt)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        with lock:
            over = True
            raise_in(thread, None)  # what was sent and has not arrived
        watch.cancel()


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def _ends(folder: Path, own: int | None) -> frozenset[int]:
    """The model's own end tokens: one, several, or (where it names none) the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if isinstance(found, int):
            return frozenset([found])
        if isinstance(found, list) and found:
            return frozenset(int(each) for each in found)
    return frozenset() if own is None else frozenset([own])


def _token(found: Any) -> str | None:
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
