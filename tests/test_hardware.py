"""The table of accelerators: the row of a device, and consistency of the rows."""

import dataclasses

import pytest

from soda_jax.hardware import CHIPS, chip_of
from soda_jax.train.hardware import peak_flops


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v2", "v2"), ("TPU v3", "v3"), ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("TPU7x", "tpu7x"),
        ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"), ("NVIDIA H200 NVL", "h200-nvl"), ("NVIDIA B200", "b200"),
    ],
)  # fmt: skip
def test_a_device_kind_selects_its_chip(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA GeForce RTX 4090", "NVIDIA GB200", "TPU v9", ""])
def test_an_unknown_device_has_no_chip(kind):
    assert chip_of(kind) is None


@dataclasses.dataclass
class Device:
    device_kind: str


@pytest.mark.parametrize(
    ("kind", "devices", "peak"),
    [
        ("TPU v4", 4, 4 * 275e12),
        ("TPU v5 lite", 8, 8 * 197e12),
        ("TPU v3", 8, 4 * 123e12),  # two devices a chip
        ("TPU7x", 8, 4 * 2307e12),
        ("NVIDIA A100-SXM4-80GB", 8, 8 * 312e12),
        ("NVIDIA B200", 8, 8 * 2250e12),
    ],
)
def test_the_peak_is_that_of_the_chips_of_the_devices(kind, devices, peak):
    found, source = peak_flops([Device(kind)] * devices)
    assert found == pytest.approx(peak) and source.endswith(f"bf16 data sheet x {devices}")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_a_row_of_the_table_is_consistent(chip):
    # The usable memory is below that of the chip; "95 GiB" and "80 GB" are rounded.
    assert 0.85 < chip.usable * chip.devices / chip.memory < 1.08
    assert chip.is_tpu == chip.kinds[0].startswith("TPU") == (chip.largest_chips > 0)
    if chip.largest:
        assert len(chip.largest) == len(chip.host)
        assert all(n % part == 0 for n, part in zip(chip.largest, chip.host, strict=True))
    assert chip.host_link <= chip.link < chip.bandwidth < chip.flops
