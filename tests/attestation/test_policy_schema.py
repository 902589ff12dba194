"""The JSON Schema of a policy says the same as the code that reads one."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from blindbox_attestation import InvalidPolicy
from blindbox_attestation.policy import PARTS, read
from blindbox_attestation.policy_schema import DIALECT, schema
from blindbox_attestation.snp.tcb import FAMILIES, MODELS, family_named
from tests.kit.json_schema import fits
from tests.kit.policies import CHANGED, EVERY, LEAST, POLICY_FIELDS, policy

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

SCHEMA = schema()
SNP = {"snp": LEAST["snp"]}

GOOD: list[Any] = [
    *[policy(key) for key in PARTS],
    *[policy(key, **CHANGED[key]) for key in PARTS],
    *[policy(key, **{name: CHANGED[key][name]}) for key, name in EVERY],
    {"version": 1, **LEAST, **POLICY_FIELDS},
    {"version": 1, "any_of": [SNP, {"tdx": LEAST["tdx"], "accept_cached": True}]},
    {"version": 1, "all_of": [{"any_of": [SNP, SNP]}, SNP]},
    policy("snp", chip_ids=["33" * 8, "44" * 64]),
    policy("snp", minimum_tcb={"Milan/01/2": LEAST["snp"]["minimum_tcb"]["Genoa"]}),
    policy(
        "snp", minimum_tcb={"Turin/02/1": {"fmc": 0, "bootloader": 1, "tee": 0, "snp": 4, "microcode": 81}}
    ),
]

JUNK: list[Any] = [None, [], {}, "", "junk", True, 1, -1, 1 << 64, [None], [[]], ["junk"], [1], {"junk": 1}]


def readable(value: Any) -> bool:
    try:
        read(json.dumps(value))
    except InvalidPolicy:
        return False
    return True


@pytest.mark.parametrize("value", GOOD, ids=lambda value: json.dumps(value)[:80])
def test_the_schema_accepts_what_is_read(value: Any) -> None:
    assert readable(value)
    assert fits(value, SCHEMA)


@pytest.mark.parametrize(("key", "name"), EVERY)
def test_junk_in_any_field_is_refused_by_both_or_by_neither(key: str, name: str) -> None:
    """C-22: whoever edits with the schema at hand learns of a mistake before the machine is asked."""
    refused = 0
    for junk in JUNK:
        value = policy(key, **{name: junk})
        if junk in ("junk", ["junk"], 1) and fits(value, SCHEMA):
            continue  # a word of the right form; what it means is the policy object's to say
        assert fits(value, SCHEMA) == readable(value), junk
        refused += not fits(value, SCHEMA)
    assert refused >= 8


OUTER: list[Any] = [
    None,
    [],
    {},
    {"version": 1},
    {**policy("snp"), "version": 2},
    {**policy("snp"), "version": True},
    {**policy("snp"), "version": "1"},
    SNP,
    {**policy("snp"), "simulated": {}},
    {**policy("snp"), "max_age": 60},
    {**policy("snp"), "max_age_seconds": 86401},
    {**policy("snp"), "max_age_seconds": -1},
    {**policy("snp"), "clock_skew_seconds": 3601},
    {**policy("snp"), "accept_cached": 1},
    {"version": 1, "any_of": []},
    {"version": 1, "any_of": [SNP], "all_of": [SNP]},
    {"version": 1, "any_of": [policy("snp")]},
    {"version": 1, "any_of": [{"any_of": [{"any_of": [SNP]}]}]},
    {"version": 1, "any_of": [SNP], **SNP},
    {"version": 1, "any_of": [{}]},
    policy("snp", minimum_tcb={"Rome": LEAST["snp"]["minimum_tcb"]["Genoa"]}),
    policy("snp", minimum_tcb={"Genoa/20/1": LEAST["snp"]["minimum_tcb"]["Genoa"]}),
    policy("snp", minimum_tcb={"Genoa/A0/2": LEAST["snp"]["minimum_tcb"]["Genoa"]}),
    policy("snp", minimum_tcb={"Genoa": {**LEAST["snp"]["minimum_tcb"]["Genoa"], "fmc": 1}}),
    policy("snp", minimum_tcb={"Turin": LEAST["snp"]["minimum_tcb"]["Genoa"]}),
    policy("tdx", rtmrs={"4": ["11" * 48]}),
    policy("tdx", rtmrs={"01": ["11" * 48]}),
    policy("tdx", rtmrs={"1": []}),
    policy("tdx", rtmrs={"1": ["11" * 47]}),
    policy("tdx", mrtd=["AA" * 48]),
    policy("tdx", mrtd=["11" * 48, "11" * 48]),
]


@pytest.mark.parametrize("value", OUTER, ids=lambda value: json.dumps(value)[:80])
def test_the_schema_refuses_what_is_refused(value: Any) -> None:
    assert not readable(value)
    assert not fits(value, SCHEMA)


@pytest.mark.parametrize("key", PARTS)
def test_no_field_may_be_left_out_or_added_that_is_needed_or_unknown(key: str) -> None:
    for name in LEAST[key]:
        value = policy(key)
        del value[key][name]
        assert not fits(value, SCHEMA)
    for name in ("roots", "junk"):
        assert not fits(policy(key, **{name: {}}), SCHEMA)


def test_the_schema_says_what_it_is_and_every_field_what_it_is_about() -> None:
    assert SCHEMA["$schema"] == DIALECT
    assert set(SCHEMA["$defs"]) == set(PARTS)
    for part in SCHEMA["$defs"].values():
        assert part["additionalProperties"] is False
        for field in part["properties"].values():
            assert field.get("description", "").endswith(".") or "$ref" in field
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    changed = deepcopy(SCHEMA)
    changed["$defs"].clear()
    assert schema() == SCHEMA


def test_the_steppings_that_are_named_are_those_of_the_family() -> None:
    for family, (_, models) in MODELS.items():
        for model in range(256):
            named = family_named(f"{family}/{model:02x}/1")
            assert (named == family) == any(model in some for some in models)
    for name in ("", "Genoa/", "Genoa/a0", "Genoa/a0/", "Genoa/a0/22", "Genoa/a0/2\n", "genoa", "x" * 100):
        assert family_named(name) is None
    assert [family_named(family) for family in FAMILIES] == list(FAMILIES)
