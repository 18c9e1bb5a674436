"""Fences called `math` become MathML at build time: no script, no font, no network.

GitHub reads the same fences, so pages stay readable there.
"""

from latex2mathml.converter import convert


def formula(source, language, css_class, options, md, **more):
    return f'<p class="{css_class}">{convert(source.strip(), display="block")}</p>'


def on_config(config):
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences.setdefault("custom_fences", []).append(
        {"name": "math", "class": "mathematics", "format": formula}
    )
    return config
