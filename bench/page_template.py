"""The form of the page, for jinja2, and its script; its words come from `page.render`."""

SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead th").forEach(function (head, column) {
    head.tabIndex = 0;
    function sort() {
      var down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach(function (h) { h.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      function key(row) {
        var text = row.cells[column] ? row.cells[column].textContent : "";
        var number = parseFloat(text.replace(/,/g, ""));
        return isNaN(number) ? text : number;
      }
      var rows = Array.from(table.tBodies[0].rows);
      rows.sort(function (a, b) {
        var x = key(a), y = key(b), order;
        if (typeof x === typeof y) { order = x < y ? -1 : x > y ? 1 : 0; }
        else { order = typeof x === "number" ? -1 : 1; }
        return down ? -order : order;
      });
      rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
    }
    head.addEventListener("click", sort);
    head.addEventListener("keydown", function (event) { if (event.key === "Enter") { sort(); } });
  });
});
document.querySelectorAll("#picker input").forEach(function (box) {
  box.addEventListener("change", function () {
    document.querySelectorAll("[data-machine]").forEach(function (part) {
      if (part.dataset.machine === box.value) { part.hidden = !box.checked; }
    });
  });
});
"""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src {{ script_digest }}">
<title>barlow_fast: benchmarks</title>
<style>
:root { --ground: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d8dce0; --card: #f6f8fa;
  --good: #0a5a9c; --bad: #b03a00; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #11151a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #353c44; --card: #1a2027;
    --good: #79b8f0; --bad: #ff9d66; }
  figure svg { filter: invert(0.93) hue-rotate(180deg); }
}
body { background: var(--ground); color: var(--ink); margin: 0 auto; max-width: 72rem;
  padding: 2rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.8rem; margin: 0; }
h2 { font-size: 1.25rem; margin: 3rem 0 0.75rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
a { color: var(--good); }
nav { margin: 1rem 0; }
nav a { margin-right: 1rem; }
.soft { color: var(--soft); }
#picker { position: sticky; top: 0; background: var(--ground); padding: 0.5rem 0; z-index: 1;
  border: 0; border-bottom: 1px solid var(--line); margin: 0; }
#picker label { margin-right: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0.75rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 0.75rem 1rem; overflow-wrap: anywhere; }
.card h3 { font-size: 1rem; margin: 0 0 0.5rem; }
.card p { margin: 0.4rem 0; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.sortable th { cursor: pointer; }
.sortable th[aria-sort=ascending]::after { content: " ↑"; }
.sortable th[aria-sort=descending]::after { content: " ↓"; }
.number { text-align: right; white-space: nowrap; }
.facts td { white-space: pre-line; overflow-wrap: anywhere; min-width: 12rem; }
figure { margin: 1rem 0 2rem; }
figure svg { display: block; width: 100%; max-width: 58rem; height: auto; }
figcaption { color: var(--soft); font-size: 0.9rem; max-width: 58rem; }
code { font: 0.85em ui-monospace, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
[hidden] { display: none; }
</style>
</head>
<body>
<h1>barlow_fast: benchmarks</h1>
<p class="soft">Generated from the rows beside this file by <code>python -m bench report</code>.</p>
<nav>
<a href="#summary">Summary</a>
<a href="#machines">Machines</a>
{% for section in sections %}
<a href="#{{ section.suite }}">{{ section.heading }}</a>
{% endfor %}
<a href="#method">Method</a>
</nav>
{% if machines|length > 1 %}
<fieldset id="picker">
{% for machine in machines %}
<label><input type="checkbox" value="{{ machine.name }}" checked> {{ machine.device }}</label>
{% endfor %}
</fieldset>
{% endif %}

<h2 id="summary">Summary: one forward and backward pass of the loss</h2>
{% if not summary %}
<p>No results yet.</p>
{% endif %}
<div class="cards">
{% for each in summary %}
<div class="card" data-machine="{{ each.machine }}">
<h3>{{ each.device }}, {{ each.dtype }}</h3>
{% for other in each.against %}
<p>{{ other.heading }}:
{% if other.slower %}
<span class="bad">slower at {{ other.slower }}</span>,
{% endif %}
<span class="good">faster at {{ other.faster }}</span> of {{ other.slower + other.faster }} shapes;
from {{ other.least }} to {{ other.most }}.</p>
{% endfor %}
<p>{{ each.break_even }}</p>
</div>
{% endfor %}
</div>

<h2 id="machines">Machines</h2>
<div class="scroll"><table class="facts">
<thead><tr><th></th>
{% for machine in machines %}
<th>{{ machine.device }}<br>{{ machine.name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for title, cells in provenance %}
<tr><th>{{ title }}</th>
{% for cell in cells %}
<td>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>

{% for section in sections %}
<section id="{{ section.suite }}">
<h2>{{ section.heading }}</h2>
{% for figure in section.figures %}
<figure data-machine="{{ figure.machine }}">
{% if figure.svg is not none %}
{{ figure.svg }}
{% endif %}
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{% endfor %}
{% for text in section.texts %}
<div data-machine="{{ text.machine }}">
{{ text.html }}
</div>
{% endfor %}
</section>
{% endfor %}

<h2 id="method">Method</h2>
<p>Implementations take turns in one run, on random inputs that rotate through twice the last-level
cache; figures are medians with the 20th and 80th percentile. Every implementation is held against
its stated mathematics before it is timed, and one that fails has no time. Ceilings (products,
copies) are measured in the same run. <a href="../README.md">bench/README.md</a> tells what a row
holds, how each suite measures, and how to run it.</p>
<script>{{ script }}</script>
</body>
</html>
"""
