"""How the page of a report looks: light and dark, on a wide screen, a narrow one and on paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --paper: #f4f6f8; --card: #fff; --ink: #18202a; --soft: #56616e; --line:
  #dbe1e8;
  --good: #0a6639; --good-bg: #e3f3ea; --bad: #a3161c; --bad-bg: #fdeaea; --open: #7d5200; --open-bg:
  #fff3da;
  --none: #56616e; --none-bg: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --paper: #11161c; --card: #1a2129; --ink: #e6ebf0; --soft:
  #9aa7b4;
  --line: #303a45; --good: #6fd39c; --good-bg: #12331f; --bad: #ff9a94; --bad-bg: #431517; --open: #f0c266;
  --open-bg: #3a2c0c; --none: #9aa7b4; --none-bg: #252d36; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 64rem; background: var(--paper); color:
  var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap:
  anywhere; }
h1, h2, h3, h4, p, ul, ol, dl { margin: 0; }
h2 { font-size: 1.2rem; margin-bottom: .6rem; }
h3 { font-size: 1rem; }
h4 { font-size: .9rem; color: var(--soft); margin-top: .6rem; }
ul, ol { padding-left: 1.2rem; }
li { margin: .3rem 0; }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { word-break: break-all; }
pre { white-space: pre-wrap; word-break: break-all; background: var(--none-bg); padding: .6rem .8rem;
  border-radius: .4rem; margin: .5rem 0 0; }
.band { background: repeating-linear-gradient(-45deg, #a3161c 0 18px, #8c0f15 18px 36px); color: #fff;
  font-weight: 700; text-align: center; padding: .8rem 1rem; border-radius: .5rem; margin-bottom: 1rem; }
header { border-left: .5rem solid; border-radius: .5rem; padding: 1.1rem 1.4rem; margin-bottom: 1rem; }
header p:first-child { font-size: .85rem; letter-spacing: .04em; color: var(--soft); }
header h1 { font-size: 1.9rem; line-height: 1.25; }
header .why { color: var(--ink); margin-top: .3rem; max-width: 48rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .none { color: var(--none); } .open { color:
  var(--open); }
header.good { background: var(--good-bg); } header.bad { background: var(--bad-bg); }
header.none { background: var(--none-bg); }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1.1rem
  1.4rem;
  margin-bottom: 1rem; color: var(--ink); }
.columns { display: grid; grid-template-columns: 1fr 2fr; gap: 0 1rem; }
p + ul { margin-top: .3rem; }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .35rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; }
.warning { background: var(--open-bg); color: var(--open); padding: .6rem .8rem; border-radius: .4rem;
  margin-bottom: .6rem; }
.strip { display: flex; flex-wrap: wrap; gap: .35rem; list-style: none; padding: 0; margin: .6rem 0 1rem; }
.strip li { margin: 0; padding: .1rem .55rem; border-radius: 1rem; font-size: .85rem; font-variant-numeric:
  tabular-nums; }
.strip .good { background: var(--good-bg); } .strip .bad { background: var(--bad-bg); }
.strip .none { background: var(--none-bg); } .strip .open { background: var(--open-bg); }
ul + p { margin-top: .5rem; }
article { border-top: 1px solid var(--line); padding: .8rem 0; }
article:last-child { padding-bottom: 0; }
article > h3 { display: flex; gap: .6rem; align-items: baseline; color: var(--ink); }
article > p { color: var(--ink); margin-left: 2.2rem; }
article.none > h3 { color: var(--soft); }
.number { flex: 0 0 1.6rem; text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.outcome { margin-left: auto; white-space: nowrap; font-size: .9rem; }
.good .outcome { color: var(--good); } .bad .outcome { color: var(--bad); } .open .outcome { color:
  var(--open); }
.mark { display: inline-block; min-width: 1em; text-align: center; font-weight: 700; }
.mark:empty { display: none; }
table { width: calc(100% - 2.2rem); margin: .5rem 0 0 2.2rem; border-collapse: collapse; font-size: .88rem;
  table-layout: fixed; color: var(--ink); }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-top: 0; }
th:nth-child(1) { width: 8.2rem; } th:nth-child(2) { width: 24%; } th:nth-child(5) { width: 17%; }
td:first-child { white-space: nowrap; }
td { color: var(--ink); }
tr.good td:first-child { color: var(--good); } tr.bad td { background: var(--bad-bg); }
tr.bad td:first-child { color: var(--bad); font-weight: 700; } tr.open td:first-child { color: var(--open);
  }
tr.none td { color: var(--soft); }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
details:last-child { padding-bottom: 0; }
summary { cursor: pointer; }
details pre { max-height: 24rem; overflow: auto; }
footer { color: var(--soft); font-size: .85rem; text-align: center; }
@media (max-width: 44rem) {
  body { padding: 1rem .6rem 2rem; }
  section, header { padding: .9rem 1rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .columns { grid-template-columns: 1fr; }
  article > p { margin-left: 0; } table { width: 100%; margin-left: 0; }
  thead { display: none; } table, tbody, tr, td { display: block; }
  tr { border-top: 1px solid var(--line); padding: .4rem 0; } td { border: 0; padding: .1rem .4rem; }
  td:empty { display: none; }
  td:not(:first-child)::before { content: attr(data-label) ": "; color: var(--soft); }
}
@media print {
  body { background: #fff; max-width: none; padding: 0; font-size: 11pt; }
  section { border: 0; padding: .5rem 0; }
  header, dl, li, tr, pre { break-inside: avoid; } h2, h3, h4, thead, .strip { break-after: avoid; }
  header, .band, tr.bad td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
