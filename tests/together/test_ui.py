"""The page in a real browser: what it shows of the proof, how one talks on it, and what it never does."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import requests as plain
from playwright.sync_api import Browser, Page, expect

import blindbox.requests as sealed
from blindbox import Policy, UnsafeSimulatedPolicy, cli
from blindbox.ui import SHOWN, LocalPage
from blindbox_attestation.simulated import UnsafeSimulationWarning
from enclave_app.engines.echo import EchoEngine
from tests.kit.amd import MEASUREMENT, FakeAmd
from tests.kit.app import whole_app
from tests.kit.browser import Seen, chromium, opened
from tests.kit.enclave import RunningEnclave
from tests.kit.own_home import moved_to
from tests.kit.pinned_amd import FakeAmdQuoter, accepting, refusing

HOSTILE = (
    "<img src=x onerror=\"alert('img')\"><script>alert('script')</script> **<b onclick=alert(1)>bold</b>** "
    '`<svg/onload=alert(2)>` [link](javascript:alert(3)) <a href="http://203.0.113.9/">a</a> \u202egnp.exe\n'
    "```html\n<iframe src='http://203.0.113.9/'></iframe>\n```"
)
LONG = "word " * 40 + "x" * 300 + "\n```\n" + "a very long line of code; " * 20 + "\n```\nend"
RATE = 200.0  # tokens a second of the slow engine: a token is a byte


@pytest.fixture(scope="module", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests of this page, whose server outlives each of them."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeSimulationWarning)
        moved_to(tmp_path_factory.mktemp("home"), patch)
        yield


@pytest.fixture(scope="module")
def browser(own_home: None) -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def policy(amd: FakeAmd) -> Policy:
    return accepting(amd)


@pytest.fixture(scope="module")
def local(machine: RunningEnclave, policy: Policy) -> Iterator[LocalPage]:
    with LocalPage(machine.origin, policy=policy) as page:
        yield page


@pytest.fixture
def screen(browser: Browser, local: LocalPage) -> Iterator[tuple[Page, Seen]]:
    """The page of the machine that was accepted."""
    with opened(browser, local.url) as (page, seen):
        expect(page.locator("#model option")).not_to_have_count(0)
        yield page, seen


def say(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    """Wait until so many answers are whole."""
    expect(page.locator(".answer .facts")).to_have_count(count)
    expect(page.locator("#send")).to_be_visible()


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return False


def scrolls_sideways(page: Page) -> bool:
    wide: bool = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return wide


# ── the proof ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_accepted_machine_is_told_in_one_line_that_opens_to_thirteen_steps(
    screen: tuple[Page, Seen], local: LocalPage
) -> None:
    page, seen = screen
    assert local.report.verified is not None
    evidence = local.report.verified.evidence_id.hex()
    line = page.locator("#proof summary").first
    expect(line).to_have_text(re.compile(rf"✔ Proved\s+AMD SEV-SNP · evidence {evidence[:16]}…"))
    expect(page.locator("#proof-body")).to_be_hidden()
    expect(page.locator("#band")).to_be_hidden()
    assert "Proved" in page.title()
    line.click()
    steps = page.locator(".steps > li")
    expect(steps).to_have_count(13)
    expect(page.locator("#proof-body")).to_contain_text(evidence)
    expect(page.locator("#proof-body")).to_contain_text("What this does not prove")
    twelfth = steps.nth(11)
    twelfth.locator("summary").click()
    for told in ("passed", "found", "wanted", MEASUREMENT.hex()):
        expect(twelfth).to_contain_text(told)
    assert seen.complaints == []


def test_the_proof_that_the_page_saves_can_be_judged_again(
    screen: tuple[Page, Seen], policy: Policy, tmp_path: Path, amd: FakeAmd
) -> None:
    page, _ = screen
    page.locator("#proof summary").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the proof as a file").click()
    saved, judge = tmp_path / "proof.json", tmp_path / "policy.json"
    download.value.save_as(saved)
    judge.write_text(policy.to_json())
    assert cli.main(["verify", "--offline", str(saved), "--policy", str(judge)]) == cli.DONE


def test_a_refused_machine_gets_no_conversation_and_the_page_says_what_failed(
    browser: Browser, machine: RunningEnclave, amd: FakeAmd
) -> None:
    """To a machine that was refused nothing is sent, and nothing on the page could send it."""
    with (
        LocalPage(machine.origin, policy=refusing(amd)) as refused,
        opened(browser, refused.url) as (page, seen),
    ):
        expect(page.locator("#proof")).to_contain_text("✘ Refused")
        expect(page.locator("#proof")).to_contain_text("Refused at step 12")
        failed = page.locator(".steps > li.bad")
        expect(failed).to_have_count(1)
        for told in ("measurement: failed", MEASUREMENT.hex(), "0" * 96):
            expect(failed).to_contain_text(told)
        for way in ("#prompt", "#send", "#model", "#skip"):
            expect(page.locator(way)).to_be_hidden()
        assert seen.complaints == []
        root, _, token = refused.url.partition("/blindbox/#")
        authorized = {"Authorization": f"Bearer {token}"}
        assert plain.get(f"{root}/v1/models", headers=authorized, timeout=60).status_code == 404
        assert plain.post(f"{root}/v1/chat/completions", headers=authorized, timeout=60).status_code == 501


def test_a_machine_that_can_prove_itself_no_longer_loses_its_conversation(
    browser: Browser, amd: FakeAmd, policy: Policy
) -> None:
    """C-35: a proof that has run out is asked for again; a refusal ends the talk without a reload."""
    with (
        whole_app(quoter=FakeAmdQuoter(amd)) as one,
        LocalPage(one.origin, policy=policy) as local,
        opened(browser, local.url) as (page, _),
    ):
        say(page, "before")
        answered(page)
        local._door.policy = refusing(amd)
        local._door.keys.forget()
        say(page, "after")
        expect(page.locator("#proof")).to_contain_text("✘ Refused")
        expect(page.locator("#prompt")).to_be_hidden()
        expect(page.locator(".answer .text").first).to_have_text("before")


def test_a_simulated_machine_is_loud(browser: Browser) -> None:
    """C-21: whoever talks to a simulated machine is told so, all the time."""
    with (
        whole_app() as one,
        LocalPage(one.origin, policy=UnsafeSimulatedPolicy()) as local,
        opened(browser, local.url) as (page, _),
    ):
        expect(page.get_by_role("alert").first).to_contain_text("proves nothing")
        expect(page.locator("#proof")).to_contain_text("✘ Simulated: proves nothing")
        assert "✔ Proved" not in page.content()
        say(page, LONG)
        answered(page)
        say(page, LONG)
        answered(page, 2)
        expect(page.locator("#band")).to_be_in_viewport()  # also at the end of a long conversation


# ── the conversation ──────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_asks_nobody_but_the_page_s_own_server_and_the_browser_complains_of_nothing(
    screen: tuple[Page, Seen], local: LocalPage
) -> None:
    page, seen = screen
    say(page, "Is anybody there?")
    answered(page)
    expect(page.locator(".answer .text")).to_have_text("Is anybody there?")
    facts = page.locator(".answer .facts")
    expect(facts).to_have_text(re.compile(r"^17 tokens · [\d.]+ tokens/s · the first after [\d.]+ s$"))
    assert seen.origins == {local.url.partition("/blindbox/")[0]}
    assert seen.complaints == []


def test_an_answer_appears_piece_by_piece_and_esc_stops_it_also_in_the_enclave(
    browser: Browser, amd: FakeAmd, policy: Policy
) -> None:
    """S-11: what nobody waits for any more is given up."""
    engine = EchoEngine(rate=RATE)
    with (
        whole_app(engine=engine, quoter=FakeAmdQuoter(amd)) as one,
        LocalPage(one.origin, policy=policy) as local,
        opened(browser, local.url) as (page, seen),
    ):
        expect(page.locator("#model option")).not_to_have_count(0)
        text = page.locator(".answer .text").first
        say(page, "a b c d e " * 2000)
        lengths: set[int] = set()
        assert eventually(lambda: len(lengths.add(len(text.inner_text())) or lengths) >= 4)  # type: ignore[func-returns-value]
        expect(page.locator("#stop")).to_be_visible()
        expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
        assert engine.busy()
        page.keyboard.press("Escape")
        expect(page.locator(".answer .facts")).to_contain_text("stopped by you")
        assert eventually(lambda: not engine.busy(), 20.0)
        expect(page.locator("#send")).to_be_visible()
        assert 0 < len(text.inner_text()) < 15_000
        page.get_by_role("button", name="Clear").click()
        say(page, "short")
        answered(page)
        expect(text).to_have_text("short")
        assert seen.complaints == []


def test_what_a_model_writes_stays_text(screen: tuple[Page, Seen]) -> None:
    """A model's answer is hostile: no element of its making, no script, no request."""
    page, seen = screen
    before = len(seen.requests)
    say(page, HOSTILE)
    answered(page)
    text = page.locator(".answer .text")
    made = text.evaluate("e => [...new Set([...e.querySelectorAll('*')].map(x => x.tagName))].sort()")
    assert made == ["BUTTON", "CODE", "DIV", "P", "PRE", "STRONG"]
    attributes = text.evaluate("e => [...e.querySelectorAll('*')].flatMap(x => x.getAttributeNames())")
    assert set(attributes) <= {"aria-label", "class", "dir", "role", "tabindex", "type"}
    for told in ("<img src=x onerror=\"alert('img')\">", "<script>", "<svg/onload=alert(2)>", "<iframe"):
        expect(text).to_contain_text(told)
    expect(page.locator(".question .text")).to_have_text(HOSTILE)
    assert seen.dialogs == []
    assert [each.url for each in seen.requests[before:] if "/v1/chat" not in each.url] == []
    assert seen.complaints == []


def test_an_answer_that_comes_in_pieces_is_written_like_one_that_comes_whole(
    screen: tuple[Page, Seen],
) -> None:
    page, _ = screen
    written = page.evaluate(
        """async (text) => {
            const { Writer } = await import("/blindbox/app.js");
            const whole = document.createElement("div"), cut = document.createElement("div");
            const one = new Writer(whole), other = new Writer(cut);
            one.write(text); one.end();
            for (const each of text) { other.write(each); other.draw(); }
            other.end();
            return [whole.innerHTML, cut.innerHTML];
        }""",
        "\n\none **bold** `x`\ntwo\n\n\n```py\n\nif x:\n\n    y\n```\n~~~\nunclosed ``` here\n\n",
    )
    assert written[0] == written[1]
    assert written[0].count("<pre") == 2
    assert "<strong>bold</strong>" in written[0]


def test_models_settings_and_what_was_said_before_are_sent(screen: tuple[Page, Seen]) -> None:
    page, seen = screen
    page.get_by_role("button", name="Settings").click()
    for name, value in {
        "Temperature": "0.5",
        "Top-p": "0.9",
        "Most new tokens": "40",
        "Seed": "7",
        "Stop at (one a line)": "Guest:\n###",
        "System message": "Be brief.",
    }.items():
        page.get_by_label(name).fill(value)
    say(page, "first")
    answered(page)
    first = page.locator(".answer .text").inner_text()
    assert len(first) == 40
    say(page, "second")
    answered(page, 2)
    body = [each.post_data_json for each in seen.requests if each.method == "POST"][-1]
    assert body == {
        "model": "org/echo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "second"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 40,
        "seed": 7,
        "stop": ["Guest:", "###"],
    }
    page.get_by_label("Top-p").fill("3")  # not as it should be: nothing is sent, and the field is shown
    page.get_by_role("button", name="Settings").click()
    say(page, "third")
    expect(page.locator("#settings")).to_be_visible()
    expect(page.locator(".question")).to_have_count(2)


def test_a_model_that_was_tuned_meanwhile_can_be_chosen(
    screen: tuple[Page, Seen], machine: RunningEnclave, policy: Policy
) -> None:
    page, _ = screen
    expect(page.locator("#model option")).to_have_count(1)
    rows = "\n".join(json.dumps({"q": f"q{n}", "a": f"a{n}"}) for n in range(4))
    with sealed.Session(policy=policy) as session:
        files = {"file": ("rows.jsonl", rows)}
        kept = session.post(f"{machine.origin}/v1/files", files=files, data={"purpose": "fine-tune"})
        lesson = {
            "dataset_name": kept.json()["id"],
            "question_column": "q",
            "answer_column": "a",
            "number_elements_for_training": 4,
        }
        assert session.post(f"{machine.origin}/finetune", json=lesson).status_code == 200
    page.reload()
    tuned = page.locator("#model optgroup[label='Tuned by you'] option")
    expect(tuned).to_have_count(1)
    page.select_option("#model", tuned.get_attribute("value"))
    say(page, "hello")
    answered(page)
    expect(page.locator(".answer h3")).to_have_text(re.compile("^ft:org/echo::"))
    expect(page.locator(".answer .text")).to_contain_text(
        "] "
    )  # the echo of a tuned model begins with its digest


def test_a_refusal_is_told_in_the_enclave_s_own_words_and_can_be_tried_again(
    screen: tuple[Page, Seen],
) -> None:
    page, _ = screen
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most new tokens").fill("99999999")
    say(page, "too much")
    trouble = page.locator(".answer .trouble")
    expect(trouble).to_contain_text("max_tokens")
    expect(trouble).to_have_attribute("role", "alert")
    page.get_by_label("Most new tokens").fill("64")
    page.get_by_role("button", name="Try again").click()
    answered(page)
    expect(page.locator(".answer .text")).to_have_text("too much")
    expect(trouble).to_have_count(0)
    expect(page.locator(".question")).to_have_count(1)


def test_an_answer_that_broke_off_is_not_taken_for_a_whole_one(
    browser: Browser, amd: FakeAmd, policy: Policy
) -> None:
    """C-29: an answer without its authenticated end is told as one."""
    with whole_app(engine=EchoEngine(rate=RATE), quoter=FakeAmdQuoter(amd)) as one:
        local = LocalPage(one.origin, policy=policy)
        with opened(browser, local.url) as (page, _):
            expect(page.locator("#model option")).not_to_have_count(0)
            say(page, "a b c d e " * 2000)
            expect(page.locator(".answer .text")).to_contain_text("a b")
            local.close()
            expect(page.locator(".answer .trouble")).to_contain_text("broke off before its end")
            page.get_by_role("button", name="Try again").click()
            expect(page.locator(".answer .trouble")).to_contain_text("does not answer")


def test_the_conversation_is_kept_nowhere(screen: tuple[Page, Seen]) -> None:
    """What was said is in the page's memory, and gone with it."""
    page, _ = screen
    say(page, "a secret")
    answered(page)
    kept = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
    assert "secret" not in "".join(kept)
    assert kept[0] == "{}"
    assert kept[2] == ""
    assert "#" not in page.url
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#turns article")).to_have_count(0)
    say(page, "another secret")
    answered(page)
    page.reload()
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#turns article")).to_have_count(0)


# ── who may use it ────────────────────────────────────────────────────────────────────────────────────────


def test_other_pages_and_other_users_of_this_computer_cannot_drive_it(
    browser: Browser, local: LocalPage
) -> None:
    root, _, token = local.url.partition("/blindbox/#")
    shown = f"{root}{SHOWN}"
    mine = {"Authorization": f"Bearer {token}"}
    assert plain.get(shown, headers=mine, timeout=60).status_code == 200
    for path in (SHOWN, "/v1/models"):
        assert plain.get(f"{root}{path}", timeout=60).status_code == 401
        wrong = {"Authorization": f"Bearer {token[:-1]}"}
        assert plain.get(f"{root}{path}", headers=wrong, timeout=60).status_code == 401
        foreign = {**mine, "Origin": "http://127.0.0.1:1"}
        assert plain.get(f"{root}{path}", headers=foreign, timeout=60).status_code == 403
    rebound = {**mine, "Host": "attacker.example"}
    assert plain.get(f"{root}/blindbox/", headers=rebound, timeout=60).status_code == 421
    with opened(browser, f"{root}/blindbox/") as (page, _):  # the page without its token
        expect(page.locator("#proof")).to_contain_text("Open the whole address")
        expect(page.locator("#prompt")).to_be_hidden()
        framed = page.evaluate(
            """() => new Promise((done) => {
                document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
                document.body.append(Object.assign(document.createElement("iframe"), {src: "/blindbox/"}));
            })"""
        )
        assert framed == "frame-src"


def test_the_page_may_load_and_send_nothing_beyond_its_own_server(local: LocalPage) -> None:
    answer = plain.get(local.url, timeout=60)
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src", "img-src"):
        assert rules[kind] == "'self'"
    for kind in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert rules[kind] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in answer.headers
    assert not re.search(r"https?://|//cdn|\son\w+=|style=", answer.text)


# ── for everybody ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_whole_journey_works_without_a_mouse(browser: Browser, local: LocalPage) -> None:
    with opened(browser, local.url) as (page, _):
        expect(page.locator("#model option")).not_to_have_count(0)
        page.evaluate("document.activeElement.blur()")
        focus = "document.activeElement.id || document.activeElement.tagName"

        def tab(times: int = 1) -> str:
            for _ in range(times):
                page.keyboard.press("Tab")
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring == "solid", f"no visible focus on {page.evaluate(focus)}"
            where: str = page.evaluate(focus)
            return where

        page.evaluate("document.body.tabIndex = -1; document.body.focus()")
        assert tab() == "skip"
        assert tab() == "SUMMARY"
        page.keyboard.press("Enter")
        expect(page.locator(".steps")).to_be_visible()
        page.keyboard.press("Enter")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        assert page.evaluate(focus) == "prompt"
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        answered(page)
        expect(page.locator(".answer .text")).to_have_text("one\ntwo")
        assert page.evaluate(focus) == "prompt"
        assert [tab(), tab()] == ["model", "settings-button"]
        page.keyboard.press("Enter")
        expect(page.locator("#settings-button")).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("Enter")
        assert tab() == "clear"
        page.keyboard.press("Enter")
        expect(page.locator("#turns article")).to_have_count(0)
        assert page.evaluate(focus) == "prompt"


def test_every_control_has_a_name_and_what_happens_is_spoken(screen: tuple[Page, Seen]) -> None:
    page, _ = screen
    page.get_by_role("button", name="Settings").click()
    page.locator("#proof summary").first.click()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, summary, a")]
            .filter((e) => !(e.labels?.[0]?.textContent ?? e.textContent).trim()).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    spoken = page.locator("#spoken")
    expect(spoken).to_have_attribute("aria-live", "polite")
    say(page, "Say this aloud.")
    answered(page)
    expect(spoken).to_have_text("Say this aloud.")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("h1").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_written_stands_out_from_what_it_is_written_on(scheme: str) -> None:
    """WCAG 2.2: text 4.5 to 1 (§1.4.3), the edges of controls 3 to 1 (§1.4.11)."""
    style = (resources.files("blindbox.ui") / "style.css").read_text("utf-8")
    roots = re.findall(r":root {(.*?)}", style, re.DOTALL)[: ["light", "dark"].index(scheme) + 1]
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]{3,6});", "".join(roots)))

    def light(name: str) -> float:
        six = colours[name] if len(colours[name]) == 6 else "".join(2 * one for one in colours[name])
        parts = [part / 255 for part in bytes.fromhex(six)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    texts = [(text, ground) for text in ("ink", "soft") for ground in ("paper", "card", "none-bg", "mine")]
    texts += [(kind, ground) for kind in ("good", "bad") for ground in ("card", f"{kind}-bg")]
    texts += [("ink", "good-bg"), ("ink", "bad-bg"), ("soft", "bad-bg"), ("open", "card"), ("on-act", "act")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    assert {
        pair for pair in (("edge", "card"), ("edge", "paper"), ("act", "paper")) if contrast(*pair) < 3
    } == set()


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(360, 740, 2.0), (640, 400, 2.0)], ids=["phone", "200 % zoom"]
)
def test_a_narrow_screen_needs_no_scrolling_sideways_and_every_way_on_can_be_reached(
    browser: Browser, local: LocalPage, width: int, height: int, scale: float
) -> None:
    narrow: dict[str, Any] = {"width": width, "height": height, "device_scale_factor": scale}
    with opened(browser, local.url, **narrow) as (page, _):
        say(page, LONG)
        answered(page)
        assert not scrolls_sideways(page)
        line = page.locator("#proof summary").first.bounding_box()
        assert line is not None
        assert line["height"] < 60  # in one line, also here
        page.locator("#proof").scroll_into_view_if_needed()
        expect(page.locator("#proof-line code")).to_be_in_viewport(ratio=1)
        page.get_by_role("button", name="Settings").click()
        page.locator("#proof summary").first.click()
        for step in page.locator(".steps summary").all():
            step.click()
        assert not scrolls_sideways(page)
        for way in (page.locator("#prompt"), page.locator("#send"), page.get_by_label("System message")):
            way.scroll_into_view_if_needed()
            expect(way).to_be_in_viewport(ratio=0.9)
        page.get_by_label("Seed").click()  # fails if something lies upon it


def test_it_is_dark_where_that_is_wished_and_still_where_movement_is_not(
    browser: Browser, local: LocalPage
) -> None:
    shade = "getComputedStyle(document.documentElement).backgroundColor"
    moving = """[...document.querySelectorAll(".answer")].some((e) => {
        e.classList.add("coming");
        return getComputedStyle(e.querySelector(".text"), "::after").animationName !== "none";
    })"""
    with opened(browser, local.url, color_scheme="light") as (page, _):
        light = page.evaluate(shade)
        say(page, "moving")
        answered(page)
        assert page.evaluate(moving)
    with opened(browser, local.url, color_scheme="dark", reduced_motion="reduce") as (page, _):
        assert page.evaluate(shade) != light
        say(page, "still")
        answered(page)
        assert not page.evaluate(moving)


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def policy_file(policy: Policy, tmp_path: Path) -> str:
    path = tmp_path / "policy.json"
    path.write_text(policy.to_json())
    return str(path)


def test_the_command_opens_the_page_and_ends_quietly_when_told_to(
    machine: RunningEnclave,
    policy_file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    visited: list[tuple[str, int]] = []

    def visit(url: str) -> bool:
        visited.append((url, plain.get(url, timeout=60).status_code))
        os.kill(os.getpid(), 2)
        return True

    monkeypatch.setattr("webbrowser.open", visit)
    assert cli.main(["ui", machine.origin, "--policy", policy_file]) == cli.DONE
    [(url, status)] = visited
    told, errors = capsys.readouterr()
    assert status == 200
    assert url in told
    assert re.match(r"http://127\.0\.0\.1:\d+/blindbox/#[\w-]{32}$", url)
    assert errors == ""
    with pytest.raises(plain.ConnectionError):
        plain.get(url, timeout=60)


def test_the_command_shows_a_refused_machine_and_says_so_in_its_status(
    machine: RunningEnclave,
    tmp_path: Path,
    amd: FakeAmd,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.json"
    other.write_text(refusing(amd).to_json())
    monkeypatch.setattr("webbrowser.open", lambda url: bool(os.kill(os.getpid(), 15)))
    assert cli.main(["ui", machine.origin, "--policy", str(other)]) == cli.NOT_PROVED
    told, errors = capsys.readouterr()
    assert "What it showed is on this page" in told
    assert "measurement-mismatch" in errors


def test_the_command_refuses_what_it_cannot_do(
    machine: RunningEnclave, policy_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = ["ui", machine.origin, "--policy", policy_file, "--port", str(machine.port), "--no-browser"]
    assert cli.main(taken) == cli.USAGE
    assert f"http://127.0.0.1:{machine.port} cannot be listened on" in capsys.readouterr().err
    assert cli.main(["ui", "http://127.0.0.1:9", "--policy", policy_file]) == cli.UNREACHABLE
    assert cli.main(["ui", "http://203.0.113.1:80"]) == cli.USAGE
    assert "blindbox trust" in capsys.readouterr().err
