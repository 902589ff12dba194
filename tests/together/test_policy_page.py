"""docs/policies.md: its examples are policies, and its tables tell of each field its form and its default."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Set
from typing import Any

import pytest

from blindbox_attestation.platforms import KEYS
from blindbox_attestation.policy import PARTS, read
from blindbox_attestation.policy_form import Form
from blindbox_attestation.policy_schema import schema
from blindbox_attestation.vtpm import boot_json
from blindbox_attestation.vtpm.boot import EventRule, MeasuredBoot
from tests.conftest import REPOSITORY
from tests.kit.json_schema import fits

PAGE = (REPOSITORY / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def section_of(key: str) -> str:
    (section,) = (part for part in PAGE.split("\n## ") if part.startswith(f"`{key}`: "))
    return section


def rows(section: str) -> dict[str, tuple[str, str, str]]:
    """The fields that a section's tables name: form, default, meaning."""
    found = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    return {name: (form, unless, about) for name, form, unless, about in found}


def fields(kind: type, forms: Mapping[str, Form]) -> dict[str, tuple[str, str, str]]:
    return {
        name: (shape(form.schema), default(kind, name, form), form.schema["description"])
        for name, form in forms.items()
    }


def shape(form: Mapping[str, Any]) -> str:
    """A JSON Schema in the words of the page."""
    if "enum" in form:
        return " or ".join(f"`{word}`" for word in form["enum"])
    if form["type"] == "array":
        words = form["items"].get("enum")
        return f"list of {', '.join(f'`{word}`' for word in words) if words else shape(form['items'])}"
    if form["type"] == "string":
        sizes = [int(digits) // 2 for digits in re.findall(r"\[0-9a-f]\{(\d+)\}", form.get("pattern", ""))]
        return f"{' or '.join(map(str, sizes))} bytes in hex" if sizes else "text"
    if form["type"] == "integer":
        return f"number, 0 to {form['maximum']}" if form["maximum"] <= 1 << 30 else "number"
    if form["type"] == "boolean":
        return "`true` or `false`"
    known = form.get("properties", {})
    if known and all(name.isdigit() for name in known):
        return f"register → {shape(next(iter(known.values())))}"
    return "object"


def default(kind: type, name: str, form: Form) -> str:
    """What counts where the field is left out; an en dash for no wish."""
    if form.required:
        return "needed"
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, Set):
        value = sorted(value)
    if value is None or (isinstance(value, Mapping | tuple) and not value):
        return "–"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: " ".join(text.split())[:40])
def test_an_example_can_be_read_and_fits_the_schema(example: str) -> None:
    read(example)
    assert fits(json.loads(example), schema())


@pytest.mark.parametrize("key", PARTS)
def test_a_platform_has_its_section_with_an_example_and_every_field(key: str) -> None:
    section = section_of(key)
    assert section.startswith(f"`{key}`: {KEYS[key].title}\n")
    assert any(set(json.loads(example)) == {"version", key} for example in EXAMPLES)
    assert rows(section) == fields(PARTS[key].kind, PARTS[key].forms)


def test_a_measured_boot_has_its_section_with_every_field() -> None:
    found = rows(section_of("boot"))
    assert found == fields(MeasuredBoot, boot_json.FORMS) | fields(EventRule, boot_json.RULE_FORMS)
