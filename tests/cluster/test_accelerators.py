import pytest

from cpo_ray.cluster.accelerators import DEVICES, match_device


@pytest.mark.parametrize(
    ("product", "key"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-40"),  # the same peaks
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_product_name_has_its_peaks(product, key):
    assert match_device(product) == DEVICES[key]


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla T4",
    ],
)
def test_other_products_have_other_peaks(product):
    assert match_device(product) is None


def test_bf16_is_faster_than_fp32():
    for device in DEVICES.values():
        assert device.flops("bf16") > device.flops("fp32")
