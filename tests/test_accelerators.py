"""Programs compiled for TPUs and GPUs that are not here, where their compilers are."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from absl import app

from benchmarks import accelerators
from benchmarks.programs import read_program
from dilax.ops import dilated_conv
from dilax.runtime import jit

FOUR = {"v5e:2x2": "libtpu", "cuda:4": "jax_cuda12_plugin"}
FLAGS = {
    "width": 1 / 16,
    "dtype": "bfloat16",
    "data": 0,
    "rows": 1,
    "shard_params": False,
    "batch": 4,
    "accumulate": 1,
    "remat": False,
}
# Flops ÷ analytic, beyond the bound. At full width, VOC's step has 1.03 to 1.15 on
# TPUs, and its joint step, whose context is no narrower here, 1.06 on GPUs.
KNOWN = {
    ("v5e:2x2", "voc", "step"): "1.32: pairs and strips weigh in narrow layers",
    ("v5e:2x2", "cityscapes", "context"): "1.50: mostly other operations",
    ("cuda:4", "voc", "joint"): "2.12: 17 rows per device are few for a dilation of 16",
}


@pytest.fixture(scope="module", params=FOUR)
def topology(request):
    pytest.importorskip(FOUR[request.param], reason="compiles for that device")
    return request.param


@pytest.fixture(scope="module")
def devices(topology):
    return accelerators.described(topology)


def _arguments(devices, shape, kernel):
    mesh = jax.sharding.Mesh(devices, ("data",))
    spread, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    return (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=spread),
        jax.ShapeDtypeStruct(kernel, jnp.bfloat16, sharding=whole),
    )


@pytest.mark.parametrize("taps, dilation, size", [(3, 2, 68), (7, 4, 40)])
def test_a_dilated_layer_is_what_four_devices_share(devices, taps, dilation, size):
    """fc6 and conv5: nothing gathered, no dilated filter, no padded gradient.

    The maps of conv5 are those of a 628-pixel crop: of smaller ones, the TPU's
    strips of columns compute a larger share twice.
    """
    given = _arguments(devices, (4, size, size, 128), (taps, taps, 128, 128))

    def loss(x, kernel):
        y = dilated_conv(x, kernel, dilation=dilation)
        return (y.astype(jnp.float32) ** 2).sum()

    with accelerators.as_on(devices):
        step = jit(jax.grad(loss, (0, 1)))
        program = read_program(step.lower(*given).compile())
    assert not program.received("all-gather")
    assert program.received("all-reduce")  # of the kernel's gradient
    extent = dilation * (taps - 1)
    assert not any(f"{extent + 1}x{extent + 1}" in w for w in program.convolutions)
    outputs = (size - extent) ** 2
    analytic = 3 * 2 * outputs * taps**2 * 128 * 128
    assert program.flops <= 1.1 * analytic
    if "NVIDIA" in devices[0].device_kind:
        assert not any("dilate" in w or "stride" in w for w in program.convolutions)


def test_an_exchange_in_several_parts_counts_once(monkeypatch):
    monkeypatch.setattr("benchmarks.programs.memory_bytes", lambda compiled: 0)
    part = (
        "  %all-gather.{} = bf16[8,4]{{1,0:S({})}} all-gather(%x.{}), channel_id={}, "
        'metadata={{op_name="fc6"}}, backend_config={{"part":{}}}'
    )
    lines = [part.format(n, n, n, channel, n) for n, channel in enumerate((7, 7, 8))]
    text = "\n".join(["ENTRY %main () -> bf16[8,4] {", *lines, "}"])
    program = SimpleNamespace(as_text=lambda: text, cost_analysis=lambda: {"flops": 0})
    assert read_program(program).received("all-gather") == 2 * 8 * 4 * 2


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["voc", "cityscapes"])
@pytest.mark.parametrize("what, rows", [("step", 1), ("context", 1), ("joint", 4)])
def test_a_narrow_step_computes_no_more_than_its_share(
    topology, devices, recipe, what, rows, request
):
    if reason := KNOWN.get((topology, recipe, what)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    flag = SimpleNamespace(**{**FLAGS, "rows": rows, "batch": 4 // rows})
    with accelerators.as_on(devices):
        job = accelerators.step(recipe, what, flag, devices)
        program, _, _ = accelerators.compiled(job)
    assert job.chips == 4
    # Only maps of few scores may be gathered, which dilations beyond a share reach.
    assert program.received("all-gather") < 0.02 * program.memory
    assert bool(program.received("collective-permute")) == (rows > 1)
    assert program.flops <= 1.25 * job.flops  # narrow layers: other operations weigh


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(accelerators.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(app.UsageError, match=r"libtpu, is not.*pip install.*\[tpu\]"):
        accelerators.described("v5e:2x2")
    with pytest.raises(app.UsageError, match=r"\[cuda\]"):
        accelerators.described("cuda:4")


def test_a_batch_that_cannot_be_accumulated_names_the_flag():
    flag = SimpleNamespace(**{**FLAGS, "accumulate": 0})
    message = r"batch of 4 .* 100 parts.*--accumulate=1"
    with pytest.raises(app.UsageError, match=message):
        accelerators.step("cityscapes", "context", flag, [])
