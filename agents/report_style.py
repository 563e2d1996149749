"""How a report looks: on wide and narrow screens, light and dark, and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --ground: #f6f5f2; --card: #ffffff; --ink: #1b2024; --quiet: #59626a; --rule: #dcdad4; --accent: #15628f;
  --mark: #fdf0cf; --mark-ink: #5a4300;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #121517; --card: #1b1f22; --ink: #e6e8ea; --quiet: #a3abb2; --rule: #343a3f; --accent: #74bde8;
    --mark: #3a3013; --mark-ink: #f3dc9c;
  }
  .plot, .swatch { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
footer { padding-top: 1rem; padding-bottom: 2.5rem; color: var(--quiet); font-size: .875rem; }
h1 { margin: 0; font-size: clamp(1.6rem, 1.1rem + 2.2vw, 2.4rem); line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 0 0 .75rem; font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 0 0 .5rem; font-size: 1.05rem; }
h1, h2, h3, p, figcaption, li { overflow-wrap: anywhere; }
p { margin: 0 0 .75rem; max-width: 46rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .75rem 0 0; padding: 0; list-style: none; }
section { margin: 2.25rem 0; }
.quiet, figcaption, caption, small { color: var(--quiet); }
small { display: block; font-size: .85rem; line-height: 1.4; font-weight: normal; }
.card, .tiles > div { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: 1rem; }
.notice { background: var(--mark); color: var(--mark-ink); border-radius: .4rem; padding: .5rem .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 0; }
.tiles dt { color: var(--quiet); font-size: .9rem; }
.tiles dd { margin: 0; }
.tiles strong { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; }
figcaption { font-size: .875rem; line-height: 1.4; }
.plot { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: .75rem; }
.panels h3 { margin: 0 0 .25rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .75rem; padding: 0; list-style: none; }
.swatch {
  display: inline-block; width: 1.1em; height: .32em; margin-right: .45em; border-radius: .2em; vertical-align: .22em;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
.game { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem 1.5rem; }
.game + .game, .run + .run { margin-top: .75rem; }
.game > * { min-width: 0; }
video { display: block; width: 100%; max-height: 32rem; background: #000; border-radius: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .925rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--rule); }
td, thead th { min-width: 5.5rem; }
td:last-child, th:last-child { padding-right: 0; }
thead th { font-weight: 600; }
tbody th { font-weight: normal; }
.setting { min-width: min(13rem, 38vw); }
td.changed { font-weight: 650; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .9em; }
pre {
  margin: 0 0 .75rem; padding: .6rem .8rem; background: var(--ground); border: 1px solid var(--rule);
  border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
details { margin-top: .75rem; }
summary { cursor: pointer; color: var(--accent); }
details[open] > summary { margin-bottom: .5rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .925rem; }
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { .facts { grid-template-columns: 1fr; } .facts dd { margin-bottom: .35rem; } }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media print {
  :root { --ground: #fff; --card: #fff; }
  @page { margin: 15mm; }
  body { font-size: 10pt; }
  header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav, .film { display: none; }
  section { margin: 1.5rem 0; }
  .panels { grid-template-columns: repeat(3, 1fr); }
  figure, .card, .tiles > div, tr { break-inside: avoid; }
  .scroll { overflow: visible; break-inside: auto; }
  h2, h3 { break-after: avoid; }
}
"""
