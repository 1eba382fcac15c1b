import jax
import jax.numpy as jnp
import pytest

from dilax.profiling import Work
from dilax.profiling.roofline import Peak, device_peak, measured_peak


def test_the_least_time_is_that_of_the_slower_of_both():
    peak = Peak("a chip", flops=100.0, bandwidth=10.0)
    assert peak.seconds(Work(flops=500, bytes=10)) == 5
    assert peak.seconds(Work(flops=500, bytes=60)) == 6


@pytest.mark.parametrize(
    "device, dtype, teraflops, terabytes",
    [
        ("NVIDIA H200", "bfloat16", 989.4, 4.8),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7, 3.35),
        ("NVIDIA H100 PCIe", "bfloat16", 756, 2),
        ("NVIDIA A100-SXM4-40GB", "float32", 156, 1.555),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312, 2.039),
        ("TPU v4", "bfloat16", 275, 1.228),
        ("TPU v5 lite", "float32", 197, 0.819),
        ("TPU v5p", "bfloat16", 459, 2.765),
    ],
)
def test_known_devices(device, dtype, teraflops, terabytes):
    peak = device_peak(dtype, device)
    assert peak.flops == pytest.approx(teraflops * 1e12)
    assert peak.bandwidth == pytest.approx(terabytes * 1e12)
    assert not peak.measured


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match="device='NVIDIA GT 710': is not this one"):
        device_peak(jnp.float32, "NVIDIA GT 710")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measures a CPU")
def test_this_machine_is_measured_once():
    peak = device_peak()
    assert peak.measured
    assert 1e9 < peak.flops < 1e14
    assert 2e8 < peak.bandwidth < 2e12
    assert device_peak(jnp.float32, peak.device) is measured_peak("float32")
