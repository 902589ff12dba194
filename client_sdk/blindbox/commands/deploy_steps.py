"""
Steps of a deployment: commands with names in them, and the ways to write them down.

The same steps become a dry run (`shell` with values), a script (`shell` with none) and a run (`words`), so
that the three cannot say different things. A name is `$REGION`: upper-case, as a shell has them. What the
steps of each cloud are is in `deploy_targets.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 100
_NAME: Final = re.compile(r"\$([A-Z][A-Z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Value:
    """Something that an operator may say. `default` is None where nobody else can know it."""

    name: str  # REGION: the option is --region
    default: str | None
    about: str
    form: str  # a regular expression of all of it
    says: str  # the same in words
    file: bool = False  # is read: it has to be there before anything is run

    @property
    def option(self) -> str:
        return "--" + self.name.lower().replace("_", "-")

    def read(self, text: str) -> str:
        """The text, if it may stand in a command. Raises `ValueError`."""
        if not re.fullmatch(self.form, text):
            like = f", such as {self.default}" if self.default else ""
            raise ValueError(f"{self.option} {text[:80]!a}: wanted {self.says}{like}")
        return text


@dataclass(frozen=True, slots=True)
class Step:
    """
    One command. What it prints is kept under the name `keeps`, if all of it is of the form `prints`.

    Without a name it has to print just that, or nothing goes on: `or_else` says why.
    """

    about: str
    words: tuple[str, ...]
    keeps: str | None = None
    prints: str | None = None  # a regular expression, POSIX's extended ones as bash has them
    or_else: str = ""
    into: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is typed for one target: to have a machine there, to see that it is right, to remove it."""

    values: tuple[Value, ...]
    deploy: tuple[Step, ...]
    check: tuple[Step, ...]
    remove: tuple[Step, ...]

    def named(self, *phases: tuple[Step, ...]) -> set[str]:
        """The values that these steps need."""
        words = [word for phase in phases for step in phase for word in step.words]
        return set(_NAME.findall(" ".join(words))) & {value.name for value in self.values}

    def programs(self, *phases: tuple[Step, ...]) -> list[str]:
        """The programs that are run, each once."""
        return list(dict.fromkeys(step.words[0] for phase in phases for step in phase))


def words(step: Step, known: Mapping[str, str]) -> list[str]:
    """The command as a program takes it; every name in it is known."""
    return [filled(word, known) for word in step.words]


def filled(text: str, known: Mapping[str, str]) -> str:
    """The text with what is known in place of the names. Raises `KeyError`."""
    return _NAME.sub(lambda name: known[name[1]], text)


def shell(step: Step, known: Mapping[str, str]) -> list[str]:
    """The command as lines for a shell. What is known stands in it, quoted; what is not keeps its name."""
    lines = _folded([quoted(word, known) for word in step.words])
    if step.into is not None:
        lines[-1] += f" > {shlex.quote(step.into)}"
    if step.keeps is not None:
        lines = [f"{step.keeps}=$({lines[0]}", *lines[1:]]
        lines[-1] += ")"
    return lines


def quoted(word: str, known: Mapping[str, str]) -> str:
    """One word for a shell: by shlex if all of it is known, else in double quotes around the names."""
    pieces = _NAME.split(word)  # text, name, text, …
    names = {name for name in pieces[1::2] if name not in known}
    if not names:
        return shlex.quote(filled(word, known))
    told = ""
    for number, piece in enumerate(pieces):
        if number % 2 and piece in names:
            told += f"${{{piece}}}" if pieces[number + 1][:1].isalnum() else f"${piece}"
        else:
            told += re.sub(r'([\\"`$])', r"\\\1", known[piece] if number % 2 else piece)
    return f'"{told}"'


def told(text: str, known: Mapping[str, str]) -> str:
    """The text for people: with what is known in place of the names."""
    return _NAME.sub(lambda name: known.get(name[1], name[0]), text)


def listed(steps: tuple[Step, ...], known: Mapping[str, str]) -> str:
    """The steps as they are shown to people, who may type them."""
    shown = []
    for step in steps:
        must = f" (it must print {step.prints})" if step.prints and step.keeps is None else ""
        shown.append("\n".join([f"# {told(step.about, known)}{must}", *shell(step, known)]))
    return "\n\n".join(shown)


def script(plan: Plan, steps: tuple[Step, ...], known: Mapping[str, str], head: str, *, on: bool) -> str:
    """
    The steps as a program of their own, for bash. Each value is a variable that may be set before.

    With `on`, one that fails does not keep the next from being tried, unless it had to print something.
    """
    lines = ["#!/usr/bin/env bash", *(f"# {line}".rstrip() for line in head.splitlines()), *_BEGIN, ""]
    named = plan.named(steps)
    values = [value for value in plan.values if value.name in named]
    lines[lines.index("set -euo pipefail")] = "set -uo pipefail" if on else "set -euo pipefail"
    for value in values:
        given = f"-{known[value.name]}" if value.name in known else "?say which"
        lines.append(f"{value.name}=${{{value.name}:{given}}}  # {value.about}")
    lines += [f'fits {one.name} "${one.name}" {shlex.quote(one.form)}' for one in values]
    lines += ["failed=0"] * on
    for step in steps:
        lines += ["", f"# {step.about}"]
        if step.prints is not None and step.keeps is None:
            first, *more = shell(step, {})
            lines += [f"printed=$({first}", *more]
            lines[-1] += ")"
            why = quoted(step.or_else, {})
            lines.append(f'[ "$printed" = {shlex.quote(step.prints)} ] || {{ echo {why} >&2; exit 1; }}')
            continue
        lines += shell(step, {})
        if on:
            lines[-1] += " || failed=1"
        elif step.keeps is not None and step.prints is not None:
            lines.append(f'fits {step.keeps} "${step.keeps}" {shlex.quote(step.prints)}')
    lines += ["", 'exit "$failed"'] * on
    lines += ["", 'echo "http://$ADDRESS:80"'] * any(step.keeps == "ADDRESS" for step in steps)
    return "\n".join(lines) + "\n"


_BEGIN: Final = (
    "set -euo pipefail",
    "",
    "fits() {",
    "    local LC_ALL=C",
    '    [[ "$2" =~ ^($3)$ ]] || {',
    '        printf \'%s is %q, which it cannot be\\n\' "$1" "$2" >&2',
    "        exit 2",
    "    }",
    "}",
)


def _folded(quoted_words: list[str]) -> list[str]:
    """The words in lines that a person can read: an option and its value stay together."""
    groups: list[str] = []
    for word in quoted_words:
        if groups and not word.startswith("-") and groups[-1].startswith("-") and " " not in groups[-1]:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) > WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {group}")
        else:
            lines[-1] += f" {group}"
    return lines
