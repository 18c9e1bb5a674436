"""The scan for hazards: on short listings, and on a kernel that has one."""

from __future__ import annotations

import pytest
import torch

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
import triton  # noqa: E402

from barlow_fast.kernels.triton import configurations, inspection, sass, table  # noqa: E402
from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES  # noqa: E402

LOOP = """
    /*0000*/  CS2R R24, SRZ ;
    /*0010*/  LDSM.16.M88.4 R88, [R1] ;
    /*0020*/  HGMMA.64x16x16.F32.BF16 R24, R88, gdesc[UR4], R24, gsb0 ;
    /*0030*/  WARPGROUP.DEPBAR.LE gsb0, {left} ;
    /*0040*/  @!P1 BRA 0x10 ;
    /*0050*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    /*0060*/  FADD R24, R24, R25 ;
    /*0070*/  EXIT ;
"""


def test_an_operand_is_overwritten_on_the_way_round():
    (hazard,) = sass.hazards(LOOP.format(left="0x1"))
    assert hazard == "0x10: LDSM.16.M88.4 touches R88, R89, R90, R91"


def test_what_a_barrier_retires_is_free():
    assert sass.hazards(LOOP.format(left="0x0")) == ()


def test_an_operand_in_shared_memory_is_none():
    listing = LOOP.format(left="0x1").replace("R88, gdesc", "gdesc").replace("LDSM", "LDS")
    assert sass.hazards(listing) == ()


@pytest.mark.parametrize(
    ("line", "touched"),
    [
        ("FADD R3, R3, R31", "R31"),
        ("STG.E.64 [R2.64], R26", "R26"),
        ("IMAD.WIDE R30, R1, 0x4, R8", "R30, R31"),
        ("DADD R30, R2, R4", "R30, R31"),
        ("LDG.E.128 R20, [R2.64]", None),
        ("FADD R32, R33, R34", None),
    ],
)
def test_an_accumulator_is_neither_read_nor_written(line, touched):
    before = "    /*0000*/  HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;\n"
    listing = f"{before}    /*0010*/  {line} ;\n    /*0020*/  EXIT ;\n"
    found = sass.hazards(listing)
    assert found == ((f"0x10: {line.split()[0]} touches {touched}",) if touched else ())


def test_a_group_is_closed_by_its_last_product():
    """Both products of the group are retired by one barrier, and neither before."""
    listing = """
    /*0000*/  HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], R24 ;
    /*0010*/  HGMMA.64x16x16.F32.BF16 R24, R12, gdesc[UR4], R24, gsb0 ;
    /*0020*/  MOV R8, R1 ;
    /*0030*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    /*0040*/  MOV R12, R1 ;
    /*0050*/  EXIT ;
    """
    assert sass.hazards(listing) == ("0x20: MOV touches R8",)


@pytest.mark.skipif(
    triton_kernels.INTERPRETED.value, reason="Triton's interpreter compiles nothing"
)
def test_the_kernel_that_has_one(monkeypatch):
    """A TF32 operand in registers: Triton 3.6 overwrites it, later versions wait for it."""
    key = ("correlation_gradients", 90, table.SINGLE, table.LARGE)
    monkeypatch.setitem(configurations.override, key, table.TABLE[key]._replace(path="fused"))
    configurations.forget_plans()
    case = inspection.Case("correlation", 4096, 512, torch.float32, "tf32")
    launches = inspection.record_step(case, REFERENCE_DEVICES[90])
    configurations.forget_plans()
    launch = next(x for x in launches if x.name == "correlation_gradients_kernel")
    found = inspection.resources(launch, 90).hazards
    assert bool(found) == triton.__version__.startswith("3.6.")


@pytest.mark.skipif(
    triton_kernels.INTERPRETED.value, reason="Triton's interpreter compiles nothing"
)
@pytest.mark.parametrize(
    ("kernel", "form", "n", "d"),
    [
        ("gram_kernel", "gram", 4096, 8192),
        ("gram_tiles_kernel", "gram", 4096, 8192),
        ("correlation_gradients_kernel", "correlation", 8192, 4096),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_products_of_stored_operands_overlap_their_loads(kernel, form, n, d, precision):
    """One product stays in flight: both operands come from shared memory as they were loaded. A
    TF32 operand that does not lie along the summed index would pass through registers."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    launches = inspection.record_step(
        inspection.Case(form, n, d, dtype, precision), REFERENCE_DEVICES[90]
    )
    for launch in (each for each in launches if each.name == kernel):
        code = inspection.machine_code(inspection.compile_launch(launch, 90))
        assert "HGMMA" in code
        assert "WARPGROUP.DEPBAR.LE gsb0, 0x1" in code
