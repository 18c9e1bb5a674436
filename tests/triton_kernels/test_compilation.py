"""Every kernel in every configuration of the table, compiled ahead of time: no device needed.

What must hold on each architecture: nothing is spilled, shared memory fits, products run on the
tensor cores with the newest instruction there is, no register is overwritten that such an
instruction still reads, and their loads are 16 bytes wide and asynchronous.
"""

from __future__ import annotations

import os
import re

import pytest
import torch

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from barlow_fast.kernels import Coefficients, GradientInputs  # noqa: E402
from barlow_fast.kernels.photometry import PARAMETERS  # noqa: E402
from barlow_fast.kernels.triton import configurations, inspection, table, tuning  # noqa: E402
from barlow_fast.kernels.triton import launch as launch_module  # noqa: E402
from barlow_fast.kernels.triton.inspection import Case, record_step  # noqa: E402
from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES  # noqa: E402

pytestmark = pytest.mark.skipif(
    triton_kernels.INTERPRETED.value, reason="Triton's interpreter does not compile"
)
INSTRUCTION = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Bytes per thread: slow, not wrong, and only for an odd D.
UNALIGNED_SPILL = 768
PRODUCT = r"tt\.dot |warp_group_dot |tc_gen5_mma"  # in Triton's GPU dialect
OPERANDS = {"bf16": "bf16", "fp16": "f16", "tf32": "tf32", "fp32": "tf32"}


# A minute each.
ARCHITECTURES = [
    pytest.param(architecture, marks=() if architecture == 90 else pytest.mark.slow)
    for architecture in sorted(REFERENCE_DEVICES)
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request):
    """(architecture, all kernels with their resources)."""
    return request.param, inspection.survey(request.param, workers=min(2, os.cpu_count() or 1))


def test_resources_of_every_kernel(compiled):
    architecture, kernels = compiled
    assert len(kernels) > 60
    limit = REFERENCE_DEVICES[architecture].shared_memory
    wrong = []
    for case, launch, r in kernels:
        where = f"{launch.name} sm_{architecture} {case}: {r}"
        if r.spilled > (UNALIGNED_SPILL if case in inspection.UNALIGNED else 0):
            wrong.append(f"spills: {where}")
        if r.shared > limit:
            wrong.append(f"more shared memory than {limit}: {where}")
        if launch.flops and r.instruction != INSTRUCTION[architecture]:
            wrong.append(f"not {INSTRUCTION[architecture]}: {where}")
        if launch.flops and architecture < 100 and r.operands != OPERANDS[case.precision]:
            wrong.append(f"operands are not {OPERANDS[case.precision]}: {where}")
        wrong += [f"hazard: {where}: {hazard}" for hazard in r.hazards]
        if not launch.flops and r.instruction:
            wrong.append(f"a tensor core where nothing is multiplied: {where}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "case",
    [
        Case("tiles", 300, 1, torch.float32, "bf16"),
        Case("gram", 2, 1, torch.bfloat16, "bf16"),
        Case("correlation", 3000, 1, torch.float32, "fp32"),
        Case("vicreg", 2, 1, torch.bfloat16, "bf16"),
        Case("multiview", 300, 1, torch.float32, "fp32"),
        Case("views", 1, 1, torch.float32, "fp32"),
        Case("gray views", 1, 1, torch.bfloat16, "bf16"),
    ],
    ids=str,
)
def test_one_column(case):
    """Integers equal to 1, such as a row stride then, are constants to the compiler."""
    for launch in record_step(case, REFERENCE_DEVICES[90]):
        assert inspection.compile_launch(launch, 90).asm["ptx"]


def test_the_survey_reaches_every_row_of_the_table():
    for device in REFERENCE_DEVICES.values():
        architecture = device.architecture
        used = set()
        for case in set(inspection.cases()) - set(inspection.VIEWS):
            form, size = case.form, case.d
            if form != "correlation":
                form, size = "gram", case.n
            for kernel in (form, f"{form}_gradients"):
                row = table.row_of(kernel, architecture, case.precision, case.dtype, size)
                used.add(row)
            record_step(case, device)
        assert used == {key for key in table.TABLE if key[1] == architecture}


@pytest.mark.parametrize("case", [Case("gram", 256, 8192, torch.bfloat16, "bf16")], ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
def test_operands_stream_through_shared_memory(case, architecture):
    """Wide asynchronous copies, several stages ahead: what keeps tensor cores fed."""
    products = [x for x in record_step(case, REFERENCE_DEVICES[architecture]) if x.flops]
    assert products
    for launch in products:
        code = inspection.compile_launch(launch, architecture)
        assert "cp.async.cg.shared.global" in code.asm["ptx"]
        operand_stage = 2 * launch.constants["BLOCK_K"] * 64 * case.dtype.itemsize
        assert code.metadata.shared >= 2 * operand_stage


@pytest.mark.parametrize(
    ("kernel", "row", "tma"),
    [
        ("gram", (128, 128, 64, 8, 4, "stored"), False),
        ("gram", (128, 128, 64, 8, 4, "tma"), True),
        ("gram_gradients", (128, 128, 64, 8, 3, "tiles"), False),
        ("gram_gradients", (128, 256, 64, 8, 4, "tma"), True),
    ],
)
def test_paths_that_tuning_may_choose(kernel, row, tma, monkeypatch):
    """Each compiles for Hopper without spills; TMA is used where the path says so."""
    key = (kernel, 90, "half", table.LARGE)
    assert table.Product(*row) in tuning.candidates(key)
    monkeypatch.setitem(configurations.override, key, table.Product(*row))
    configurations.forget_plans()
    names = {"gram": "gram_kernel", "gram_gradients": "gram_tiles_kernel"}
    launches = record_step(Case("gram", 4096, 8192, torch.bfloat16, "bf16"), REFERENCE_DEVICES[90])
    configurations.forget_plans()
    launch = next(x for x in launches if x.name == names[kernel])
    assert inspection.resources(launch, 90).spilled == 0
    code = inspection.compile_launch(launch, 90).asm["ptx"]
    assert ("cp.async.bulk.tensor" in code) == tma


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_products_of_float32_quality_are_added_outside_of_the_tensor_cores(architecture):
    """Accumulators of tensor cores truncate: a long sum in them would lose what three products
    keep."""
    case = Case("gram", 256, 8192, torch.float32, "fp32")
    launches = record_step(case, REFERENCE_DEVICES[architecture])
    launch = next(each for each in launches if each.name == "gram_kernel")
    code = inspection.compile_launch(launch, architecture).asm["ttgir"]
    products = [line for line in code.splitlines() if re.search(PRODUCT, line)]
    assert len(products) == 3
    assert re.search(r"%cst\w*[, ]|%false", products[0])  # from zero
    block = launch.constants["BLOCK_M"]
    assert re.search(rf"arith\.addf .* tensor<{block}x{block}xf32", code)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_moments_load_ahead(architecture, dtype):
    """Triton pipelines a loop without a product only where its stages are requested."""
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")
    case = Case("gram", 256, 8192, dtype, precision)
    launch = record_step(case, REFERENCE_DEVICES[architecture])[0]
    assert launch.name == "moments_kernel"
    kernel = inspection.compile_launch(launch, architecture)
    assert "cp.async" in kernel.asm["ptx"]
    assert kernel.metadata.shared >= (configurations.MOMENTS_STAGES - 1) * 8192
    assert inspection.resources(launch, architecture).spilled == 0


@pytest.mark.parametrize(
    ("form", "shape", "kernel", "count"),
    [
        ("correlation", (4096, 512), "moments_kernel", 1),
        ("correlation", (4096, 512), "correlation_finish_kernel", 2),
        ("gram", (256, 8192), "gram_finish_kernel", 1),
        ("gram", (2048, 8192), "gram_stripes_kernel", 1),
        ("gram", (4096, 8192), "gram_tiles_kernel", 1),
    ],
    ids=str,
)
def test_arrivals_order_memory(form, shape, kernel, count):
    """Of a program that counts its arrival: the stores of all of its threads, a barrier, one atomic
    that releases and acquires at the scope of the device, a barrier, the loads of the last one."""
    case = Case(form, *shape, torch.bfloat16, "bf16")
    launch = next(x for x in record_step(case, REFERENCE_DEVICES[90]) if x.name == kernel)
    code = inspection.compile_launch(launch, 90).asm["ptx"]
    pattern = r"\bbar(?:rier)?\.sync|\batom\.[\w.:]+|\bld\.global|\bst\.global"
    found = re.findall(pattern, code)
    places = [place for place, name in enumerate(found) if name.startswith("atom")]
    assert len(places) == count
    for place in places:
        assert found[place].startswith("atom.global.gpu.acq_rel.add")
        assert found[place - 1].endswith(".sync")
        assert found[place + 1].endswith(".sync")
    assert "st.global" in found[: places[0]]
    assert "ld.global" in found[places[0] :]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_moments_of_many_views_load_ahead(dtype):
    case = Case("multiview", 256, 8192, dtype, "bf16")
    launch = record_step(case, REFERENCE_DEVICES[90])[0]
    assert launch.name == "view_moments_kernel"
    kernel = inspection.compile_launch(launch, 90)
    assert "cp.async" in kernel.asm["ptx"]
    block = launch.constants["ROWS"] * launch.constants["COLUMNS"] * dtype.itemsize
    assert kernel.metadata.shared >= 8 * (configurations.MOMENTS_STAGES - 1) * block


class NoDriver:
    """What Triton's run-time compiler asks of a driver, for a device that is not there."""

    utils = None

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def kernels_as_launched(monkeypatch):
    """Calls of the kernel set go through Triton's own binding and specialisation and are compiled,
    not run. The list of what was compiled."""
    compiled, run = [], JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel.hash))
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(launch_module, "_INTERPRETER", REFERENCE_DEVICES[90])
    monkeypatch.setattr(driver, "_active", NoDriver())
    return compiled


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests on the device do this")
@pytest.mark.parametrize(
    "case",
    [
        Case("gram", 256, 8192, torch.bfloat16, "bf16"),
        Case("gram", 2048, 4096, torch.float32, "tf32"),
        Case("gram", 2304, 2304, torch.float32, "tf32"),
        Case("gram", 520, 700, torch.float32, "fp32"),
        Case("correlation", 4096, 64, torch.float16, "fp16"),
        Case("vicreg", 256, 8192, torch.bfloat16, "bf16"),
        Case("multiview", 520, 700, torch.float32, "tf32"),
        Case("views", 2, 64, torch.bfloat16, "bf16"),
        Case("gray views", 1, 5, torch.float32, "fp32"),
    ],
    ids=str,
)
def test_launches_compile_to_what_was_inspected(case, kernels_as_launched):
    """The run-time compiler takes the arguments of every launch, descriptors among them, and makes
    of them, key by key of its disk cache, the code that ahead-of-time compilation made."""
    run_step(case)
    found = list(kernels_as_launched)
    expected = [
        (launch.name, inspection.compile_launch(launch, 90).hash)
        for launch in record_step(case, REFERENCE_DEVICES[90])
    ]
    assert found == expected


def run_step(case):
    """The calls of `inspection.record_step`, on tensors with memory."""
    if case.form.endswith("views"):
        channels = 3 if case.form == "views" else 1
        crops = torch.zeros(case.n, case.d, case.d, channels, dtype=torch.uint8)
        parameters, one = torch.zeros(case.n, PARAMETERS), torch.ones(channels)
        triton_kernels.photometric(crops, parameters, one, one, case.dtype)
        return
    if case.form in ("vicreg", "multiview"):
        inspection.run_family(case, "cpu")
        return
    z = torch.zeros(case.n, case.d, dtype=case.dtype)
    one, precision = torch.ones(()), case.precision
    rows, sums = triton_kernels.statistics(z, z, 1e-5, precision)
    gradients = getattr(triton_kernels, f"{case.form}_gradients")
    if case.form == "gram":
        _, *matrices = triton_kernels.gram_terms(z, z, rows, sums, 0.0051, precision)
    else:
        matrices = triton_kernels.correlation(z, z, rows, precision)
        triton_kernels.terms(sums, matrices[1][0], 1, False, 0.0051, precision)
    coefficients = Coefficients(1e-5, 0.1, 0.1, 1e-5)
    gradients(GradientInputs(z, z, rows, matrices, one, coefficients, precision))


def test_a_spill_would_be_seen():
    """The check itself: a configuration that cannot fit its accumulator into registers."""
    case = Case("gram", 256, 8192, torch.bfloat16, "bf16")
    launch = next(
        x for x in record_step(case, REFERENCE_DEVICES[80]) if x.name == "gram_columns_kernel"
    )
    launch.warps = 1
    assert inspection.resources(launch, 80).spilled > 0
