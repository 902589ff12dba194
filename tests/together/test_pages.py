"""The pages say what is so."""

from __future__ import annotations

import dataclasses
import json
import re

from blindbox_attestation import Policy
from enclave_app.settings import Settings
from tests.conftest import REPOSITORY


def test_every_setting_is_on_the_page_and_every_setting_on_the_page_exists() -> None:
    page = (REPOSITORY / "docs" / "running.md").read_text(encoding="utf-8")
    table = page.split("## Settings")[1].split("## Revocation")[0]
    told = set(re.findall(r"`BLINDBOX_([A-Z_]+)`", table))
    assert told == {field.name.upper() for field in dataclasses.fields(Settings)}


def test_the_policy_in_the_readme_is_one_that_can_be_read() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```json\n(.*?)```", readme, re.DOTALL) if '"snp"' in block)
    policy = json.loads(example)
    policy["snp"]["measurements"] = ["ab" * 48]
    assert Policy.from_json(json.dumps(policy)).snp is not None
