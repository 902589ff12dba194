"""docs/policies.md: its examples are policies, and its tables name the fields that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest

from blindbox_attestation.platforms import KEYS
from blindbox_attestation.policy import PARTS, read
from blindbox_attestation.policy_form import Form
from blindbox_attestation.policy_schema import schema
from blindbox_attestation.vtpm import boot_json
from tests.conftest import REPOSITORY
from tests.kit.json_schema import fits

PAGE = (REPOSITORY / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def section_of(key: str) -> str:
    (section,) = (part for part in PAGE.split("\n## ") if part.startswith(f"`{key}`: "))
    return section


def rows(section: str) -> dict[str, tuple[bool, str]]:
    """The fields that a section's tables name."""
    found = re.findall(r"^\| `(\w+)` \| (yes)? *\| (.*) \|$", section, re.MULTILINE)
    return {name: (bool(needed), about) for name, needed, about in found}


def fields(forms: Mapping[str, Form]) -> dict[str, tuple[bool, str]]:
    return {name: (form.required, form.schema["description"]) for name, form in forms.items()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: " ".join(text.split())[:40])
def test_an_example_can_be_read_and_fits_the_schema(example: str) -> None:
    read(example)
    assert fits(json.loads(example), schema())


@pytest.mark.parametrize("key", PARTS)
def test_a_platform_has_its_section_with_an_example_and_every_field(key: str) -> None:
    section = section_of(key)
    assert section.startswith(f"`{key}`: {KEYS[key].title}\n")
    assert any(set(json.loads(example)) == {"version", key} for example in EXAMPLES)
    assert rows(section) == fields(PARTS[key].forms)


def test_a_measured_boot_has_its_section_with_every_field() -> None:
    assert rows(section_of("boot")) == fields(boot_json.FORMS) | fields(boot_json.RULE_FORMS)
