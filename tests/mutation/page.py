"""
What docs/mutation.md says: the scores, and every lie that no test noticed, each with the reason why.

The reasons are in reasons.toml, by function; a key there is a lie and the line it is told in, or "*" for
all of a function. `python -m tests.mutation.page FILE…` writes the page from the results of several runs.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

REASONS = Path(__file__).with_name("reasons.toml")

HEAD = """\
# Do the tests bite?

Small lies are put into the verifier, one at a time: a comparison turned or moved by one, a condition
negated, an operand or a call left out, a number, byte or error code changed, a result replaced by `None`.
The tests that run the changed line must notice. What is changed are the bodies of functions; tables at the
top of a module and words meant for people are left alone. This page is written by

```sh
make mutation
```

Score: killed of all mutants, those that no test runs included. Whatever survived is listed below the table;
what is called *equivalent* there changes nothing that anybody can see, and counts against the score all the
same.

"""


def page(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, from the fates of all mutants."""
    measured = f"Measured on {date.today().isoformat()}.\n\n"
    return HEAD + measured + "\n".join([*_table(outcomes), "", *_survivors(outcomes)]) + "\n"


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[1]


def _table(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    fates: dict[str, Counter[str]] = defaultdict(Counter)
    for one in outcomes:
        if one["fate"] != "stillborn":
            fates[_package(one["module"])][one["fate"]] += 1
            fates["**all**"][one["fate"]] += 1
    yield "| module or package | mutants | killed | survived | untested | score |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, counts in sorted(fates.items()):
        score = 100 * counts["killed"] / counts.total()
        shown = name if name.startswith("*") else f"`{name}`"
        yield (
            f"| {shown} | {counts.total()} | {counts['killed']} | {counts['survived']} "
            f"| {counts['untested']} | {score:.1f} % |"
        )


def _survivors(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    yield "## What was not noticed"
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in outcomes:
        if one["fate"] in ("survived", "untested"):
            function = f"{one['module'].partition('.')[2]}.{one['function']}"
            lie = f"{one['lie']}: {one['text']}"
            why = reasons.get(function, {})
            reason = why.get(lie) or why.get("*") or "no reason is written down"
            found[function].append((lie, reason))
    for function, lies in sorted(found.items()):
        yield ""
        yield f"`{function}`"
        yield ""
        for reason in dict.fromkeys(reason for _, reason in lies):
            told = Counter(lie for lie, why in lies if why == reason)
            yield from (
                f"- `` {lie} ``" + (f" ({times} times)" if times > 1 else "") for lie, times in told.items()
            )
            yield f"  {reason}"


if __name__ == "__main__":
    runs = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    sys.stdout.write(page([one for run in runs for one in run]))
