"""Where a row comes from."""

from __future__ import annotations

import json

import pytest
import torch

import barlow_fast
from bench import provenance


def test_every_field_is_there_and_goes_into_json():
    origin = json.loads(json.dumps(provenance.collect()))
    for field in ("cpu", "cores", "threads", "system", "python", "date", "command"):
        assert origin[field], field
    assert origin["torch"] == torch.__version__
    assert origin["barlow_fast"] == barlow_fast.__version__
    assert {"flags", "instruction_set", "commit", "load_average", "lightly"} <= set(origin)
    assert origin["last_level_cache_bytes"] > 0


def test_no_path_of_the_machine_is_recorded():
    assert str(provenance.ROOT) not in json.dumps(provenance.collect())


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "intel-xeon-platinum-8488c"),
        ("AMD EPYC 9R14", "amd-epyc-9r14"),
        ("", "unknown"),
    ],
)
def test_slugs(name, slug):
    assert provenance.slug(name) == slug
