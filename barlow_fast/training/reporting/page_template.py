"""The page's form, for jinja2; its words that depend on the run come from `page.content`."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { --ground: #ffffff; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --card: #f9fafb;
  --bar: #1d4ed8; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #111827; --ink: #e5e7eb; --soft: #9ca3af; --line: #374151; --card: #1f2937;
    --bar: #60a5fa; }
}
body { background: var(--ground); color: var(--ink); margin: 0 auto; padding: 2rem 1.25rem 4rem;
  max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.about { color: var(--soft); margin: .25rem 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .75rem;
  margin-top: 1.5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.5rem; }
.tile span { display: block; }
.tile small { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
tbody th { font-weight: 400; }
@media (min-width: 45rem) { tbody th { width: 14rem; } }
.numbers td, .numbers th { text-align: right; padding: .2rem 0 .2rem .75rem; }
.track { display: block; min-width: 6rem; height: .8rem; background: var(--line);
  border-radius: .2rem; margin-top: .35rem; }
pre { margin: 0; font: .85rem/1.5 ui-monospace, monospace; }
.track i { display: block; height: 100%; background: var(--bar); border-radius: .2rem; }
figure { margin: 1rem 0 2rem; }
figure img { width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: .5rem; }
figcaption { color: var(--soft); font-size: .9rem; }
code { display: block; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .4rem .7rem; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, monospace; }
dl { margin: 0; }
dt { color: var(--soft); margin-top: .6rem; }
dd { margin: .2rem 0 0; }
summary { cursor: pointer; color: var(--soft); }
@media print { details:not([open]) { display: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="about">{{ summary }}<br>written {{ made }}</p>

<div class="tiles">
{% for number, what, against in tiles %}
<div class="tile"><b>{{ number }}</b><span>{{ what }}</span><small>{{ against }}</small></div>
{% endfor %}
</div>

{% if scores %}
<h2>k-NN accuracy on test images</h2>
<div class="scroll"><table>
{% for what, value in scores %}
<tr><th>{{ what }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% endif %}

{% if pictures %}
<h2>What happened</h2>
{% for picture in pictures %}
<figure>
<img src="data:image/png;base64,{{ picture.source }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
{% endif %}

{% if commands %}
<h2>What to do next</h2>
<dl>
{% for what, command in commands %}
<dt>{{ what }}</dt><dd><code>{{ command }}</code></dd>
{% endfor %}
</dl>
{% endif %}

{% if times %}
<h2>Where the time of a step went</h2>
<div class="scroll"><table>
{% for row in times %}
<tr><th>{{ row.name }}</th>
<td>{{ "%.1f"|format(100 * row.share) }} %</td>
<td>{{ "%.2f"|format(row.milliseconds) }} ms</td>
<td style="width: 40%"><div class="track">
<i style="width: {{ "%.1f"|format(100 * row.share) }}%"></i></div></td></tr>
{% endfor %}
</table></div>
{% endif %}

<h2>What was run</h2>
<div class="scroll"><table>
{% for name, value in facts.items() %}
<tr><th>{{ name }}</th>
{% if value.splitlines()|length > 1 %}
<td><pre>{{ value }}</pre></td></tr>
{% else %}
<td>{{ value }}</td></tr>
{% endif %}
{% endfor %}
</table></div>

<h2>Settings</h2>
<details><summary>all {{ settings|length }}</summary>
<div class="scroll"><table>
{% for name, value in settings.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
</details>

{% if history %}
<h2>Epochs</h2>
<details><summary>all {{ history|length }}</summary>
<div class="scroll"><table class="numbers">
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in history %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
</details>
{% endif %}
</body>
</html>
"""
