"""What holds for the policy of every platform: nothing is accepted by being empty, misspelt or left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, FrozenInstanceError, fields
from typing import Any

import pytest

from blindbox_attestation import InvalidPolicy, Policy
from blindbox_attestation.development_chain import DEVELOPMENT_ROOT
from blindbox_attestation.platforms import KEYS
from blindbox_attestation.policy import PARTS
from blindbox_attestation.policy_digest import digest_of
from blindbox_attestation.policy_words import Words
from tests.kit.policies import CHANGED, EVERY, LEAST, POLICY_FIELDS, policy

pytestmark = pytest.mark.filterwarnings("ignore::blindbox_attestation.MilanWarning")

EMPTY: list[Any] = [None, [], {}, "", (), frozenset(), set(), [None], [[]], [{}], [""]]
EMPTY_JSON: list[Any] = [None, [], {}, "", [None], [[]], [{}], [""]]


def read(value: object) -> Policy:
    return Policy.from_json(json.dumps(value))


def part(key: str, **changes: Any) -> Any:
    return read(policy(key, **changes)).part(key)


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is an object, anywhere inside."""
    if isinstance(value, dict):
        yield path
        for name, one in value.items():
            yield from objects(one, (*path, name))


def test_the_samples_name_every_platform_and_every_field_there_is() -> None:
    assert set(LEAST) == set(CHANGED) == set(PARTS) == set(KEYS)
    for key, known in PARTS.items():
        assert set(CHANGED[key]) == set(known.forms), key
        assert {name for name, form in known.forms.items() if form.required} == set(LEAST[key]), key


@pytest.mark.parametrize("key", PARTS)
def test_every_field_of_a_policy_has_a_form_in_json_and_roots_have_none(key: str) -> None:
    """C-21: a file cannot bring a root along."""
    assert {one.name for one in fields(PARTS[key].kind)} - {"roots"} == set(PARTS[key].forms)
    with pytest.raises(InvalidPolicy, match="roots"):
        read(policy(key, roots={"00" * 32: "mine"}))


@pytest.mark.parametrize("key", PARTS)
def test_the_least_that_can_be_said_is_read_and_written_again(key: str) -> None:
    least = read(policy(key))
    assert least.keys == (key,)
    assert least.platforms == (KEYS[key].name,)
    assert Policy.from_json(least.to_json()) == least
    assert all(least.part(other) is None for other in PARTS if other != key)
    assert least.part("roots") is least.part("accept_cached") is None


@pytest.mark.parametrize(("key", "name"), EVERY)
def test_another_value_in_any_field_is_another_policy_and_comes_back_from_json(key: str, name: str) -> None:
    """What was proved under one policy is not used under another."""
    least, other = read(policy(key)), read(policy(key, **{name: CHANGED[key][name]}))
    assert other != least
    assert other.digest != least.digest
    again = Policy.from_json(other.to_json())
    assert (again, again.digest, again.to_json()) == (other, other.digest, other.to_json())


@pytest.mark.parametrize("key", PARTS)
def test_no_two_wishes_make_the_same_policy(key: str) -> None:
    """Each field alone, and all of them together."""
    made = [policy(key, **{name: value}) for name, value in CHANGED[key].items()]
    seen = {read(value).digest for value in (policy(key), policy(key, **CHANGED[key]), *made)}
    assert len(seen) == len(made) + 2


@pytest.mark.parametrize("name", POLICY_FIELDS)
def test_the_fields_that_are_about_all_platforms_are_in_the_digest_too(name: str) -> None:
    least, other = read(policy("snp")), read({**policy("snp"), name: POLICY_FIELDS[name]})
    assert other != least
    assert other.digest != least.digest


def test_a_policy_that_names_one_platform_more_is_another_policy() -> None:
    seen = {read(policy(key)).digest for key in PARTS}
    seen |= {read({**policy("snp"), key: LEAST[key]}).digest for key in PARTS if key != "snp"}
    seen.add(read({"version": 1, **LEAST}).digest)
    assert len(seen) == 2 * len(PARTS)


@pytest.mark.parametrize(("key", "name"), EVERY)
@pytest.mark.parametrize("empty", EMPTY_JSON, ids=repr)
def test_an_empty_wish_in_a_file_is_an_error(key: str, name: str, empty: Any) -> None:
    """C-22: null, [], {} and "" are no wishes, and no defaults either."""
    with pytest.raises(InvalidPolicy):
        read(policy(key, **{name: empty}))


@pytest.mark.parametrize(("key", "name"), EVERY)
@pytest.mark.parametrize("empty", EMPTY, ids=repr)
def test_an_empty_wish_in_code_is_an_error(key: str, name: str, empty: Any) -> None:
    """C-22: and None is one only where leaving the field out would be too."""
    good = part(key)
    told = {one.name: getattr(good, one.name) for one in fields(good)}
    left_out = next(one.default for one in fields(good) if one.name == name)
    if empty is None and left_out is None:
        assert type(good)(**{**told, name: None}) == good
        return
    with pytest.raises(InvalidPolicy):
        type(good)(**{**told, name: empty})


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("empty", [*EMPTY, "any", True, 1, b""], ids=repr)
def test_a_platform_is_named_by_its_own_kind_of_policy_only(key: str, empty: Any) -> None:
    """C-22: neither an empty value nor another platform's policy names a platform."""
    others = [part(other) for other in PARTS if other != key]
    for value in (empty, *others):
        with pytest.raises(InvalidPolicy):
            Policy(**{key: value})
    if empty is not None:
        with pytest.raises(InvalidPolicy):
            Policy(**{"snp": part("snp"), "tdx": part("tdx"), key: empty})


@pytest.mark.parametrize("key", PARTS)
def test_what_names_the_program_or_the_firmware_has_no_default(key: str) -> None:
    """C-22: a field that could only be defaulted open has to be given."""
    required = {name for name, form in PARTS[key].forms.items() if form.required}
    defaults = {
        one.name
        for one in fields(PARTS[key].kind)
        if one.default is not MISSING or one.default_factory is not MISSING
    }
    assert required
    assert not required & defaults
    for name in required:
        told = {other: value for other, value in LEAST[key].items() if other != name}
        with pytest.raises(InvalidPolicy):
            read({"version": 1, key: told})


@pytest.mark.parametrize("key", PARTS)
def test_an_unknown_key_is_refused_in_every_object_of_a_policy(key: str) -> None:
    """C-22: it is most likely a misspelt wish."""
    full = {**policy(key, **CHANGED[key]), **POLICY_FIELDS}
    read(full)
    places = list(objects(full))
    assert () in places
    assert (key,) in places
    for path in places:
        changed = json.loads(json.dumps(full))
        inner = changed
        for name in path:
            inner = inner[name]
        inner["unheard"] = inner.get(next(iter(inner)))
        with pytest.raises(InvalidPolicy):
            read(changed)


@pytest.mark.parametrize("key", PARTS)
def test_a_key_that_stands_twice_is_refused_and_so_is_a_value_that_does(key: str) -> None:
    """C-17: neither the first nor the last of two counts."""
    text = json.dumps(policy(key))
    twice = text[:-1] + f', "{key}": {json.dumps(LEAST[key])}}}'
    with pytest.raises(InvalidPolicy, match="twice"):
        Policy.from_json(twice)
    for name, value in CHANGED[key].items():
        if isinstance(value, list):
            with pytest.raises(InvalidPolicy, match="twice"):
                read(policy(key, **{name: [*value, value[0]]}))


@pytest.mark.parametrize(
    "word", ["simulated", "unsafe", "simulation", "unsafe_simulated", "development", "any"]
)
def test_no_word_in_a_file_names_simulated_machines(word: str) -> None:
    """C-21: not as a platform, not as a field of one, not as a value of a field that takes words."""
    for value in (True, {}, LEAST["snp"]):
        for whole in ({word: value}, {word: value, **LEAST}):
            with pytest.raises(InvalidPolicy):
                read({"version": 1, **whole})
        for key in PARTS:
            with pytest.raises(InvalidPolicy):
                read(policy(key, **{word: value}))
    for kind in ("any_of", "all_of"):
        with pytest.raises(InvalidPolicy):
            Policy.from_json(json.dumps({"version": 1, kind: [{word: LEAST["snp"]}]}))


@pytest.mark.parametrize("key", PARTS)
def test_no_policy_but_the_unsafe_one_may_trust_the_root_that_everybody_can_sign_with(key: str) -> None:
    """C-21: whichever platform's roots it is put among."""
    good = part(key)
    told = {one.name: getattr(good, one.name) for one in fields(good)}
    if "roots" not in told:
        pytest.skip("its roots are those of a policy within it")
    trusting = type(good)(**{**told, "roots": {**told["roots"], DEVELOPMENT_ROOT: "Genoa"}})
    with pytest.raises(InvalidPolicy, match="development root"):
        Policy(**{key: trusting})


@pytest.mark.parametrize("key", PARTS)
def test_a_policy_stays_as_it_was_made(key: str) -> None:
    good = part(key, **CHANGED[key])
    for one in fields(good):
        with pytest.raises(FrozenInstanceError):
            setattr(good, one.name, getattr(good, one.name))
        assert not isinstance(getattr(good, one.name), dict | list | set), one.name
    assert len({good, part(key, **CHANGED[key]), part(key)}) == 2


@pytest.mark.parametrize("key", PARTS)
def test_a_policy_says_in_words_whom_it_trusts_and_what_it_leaves_open(key: str) -> None:
    for one in (part(key), part(key, **CHANGED[key])):
        words = one.in_words()
        assert isinstance(words, Words)
        assert words.trusts
        assert words.checks
        assert words.unchecked
        for sentence in (*words.trusts, *words.checks, *words.unchecked):
            assert sentence.endswith("."), sentence
            assert sentence[0].isupper(), sentence


def test_what_has_no_place_in_a_policy_has_no_digest() -> None:
    with pytest.raises(TypeError):
        digest_of(b"label", {"score": 0.5})
    assert digest_of(b"label", frozenset({b"a", b"b"})) == digest_of(b"label", frozenset({b"b", b"a"}))
    assert digest_of(b"label", b"ab") != digest_of(b"label", "ab")
    assert digest_of(b"label", "ab") != digest_of(b"labe", "lab")
