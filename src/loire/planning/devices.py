"""Known devices: memory, memory bandwidth and dense 16-bit matrix throughput, as published.

Memory is in decimal GB as it is sold. Throughput is dense bfloat16: the data sheets of NVIDIA
give twice these figures, "with sparsity". Apple gives float32 figures, and only for some chips;
its GPUs compute 16-bit floats at the same rate. What a maker does not publish is None here.
"""

from dataclasses import dataclass

from loire.base.errors import ConfigError

GB, TB, TFLOPS = 10**9, 10**12, 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or machine; None is unknown."""

    name: str
    label: str
    memory_bytes: int
    bandwidth_bytes_per_s: float | None
    flops: float | None
    """Dense bfloat16 (and float16) floating-point operations per second."""
    is_cpu: bool = False
    """Weights are held the way Loire's CPU kernels hold them."""
    source: str
    """Where the figures come from."""


def _nvidia(
    name: str, label: str, memory: int, bandwidth: float, tflops: float, source: str
) -> Device:
    return Device(
        name=name,
        label="NVIDIA " + label,
        memory_bytes=memory * GB,
        bandwidth_bytes_per_s=bandwidth * GB,
        flops=tflops * TFLOPS,
        source=source,
    )


def _apple(name: str, memory: int, bandwidth: float, tflops: float | None = None) -> Device:
    return Device(
        name=name,
        label="Apple " + name.replace("-", " ").title(),
        memory_bytes=memory * GB,
        bandwidth_bytes_per_s=bandwidth * GB,
        flops=None if tflops is None else tflops * TFLOPS,
        source="Apple's announcement of the chip; largest memory and GPU it is sold with",
    )


_ALL = (
    # 1,979 TFLOPS with sparsity, 3.35 TB/s
    _nvidia("h100-80gb", "H100 SXM 80 GB", 80, 3350, 989.4, "NVIDIA H100 data sheet, SXM5"),
    # 1,979 TFLOPS with sparsity, 4.8 TB/s
    _nvidia("h200", "H200 SXM 141 GB", 141, 4800, 989.4, "NVIDIA H200 data sheet, SXM"),
    # 312 TFLOPS dense; 40 GB HBM2 has 1,555 GB/s, 80 GB HBM2e 2,039 GB/s (PCIe: 1,935)
    _nvidia("a100-40gb", "A100 SXM 40 GB", 40, 1555, 312, "NVIDIA A100 data sheet, SXM4"),
    _nvidia("a100-80gb", "A100 SXM 80 GB", 80, 2039, 312, "NVIDIA A100 data sheet, SXM4"),
    # 242 TFLOPS with sparsity
    _nvidia("l4", "L4 24 GB", 24, 300, 121, "NVIDIA L4 data sheet"),
    # 362.05 dense | 733 with sparsity
    _nvidia("l40s", "L40S 48 GB", 48, 864, 362.05, "NVIDIA L40S data sheet"),
    # float32 accumulation, as inference needs it; 330 with sparsity
    _nvidia("rtx-4090", "RTX 4090 24 GB", 24, 1008, 165.2, "NVIDIA Ada architecture white paper"),
    _apple("m1", 16, 68.25, 2.6),
    _apple("m1-pro", 32, 200, 5.2),
    _apple("m1-max", 64, 400, 10.4),
    _apple("m1-ultra", 128, 800),
    _apple("m2", 24, 100, 3.6),
    _apple("m2-pro", 32, 200),
    _apple("m2-max", 96, 400),
    _apple("m2-ultra", 192, 800),
    _apple("m3", 24, 100),
    _apple("m3-pro", 36, 150),
    _apple("m3-max", 128, 400),
    _apple("m3-ultra", 512, 819),
    _apple("m4", 32, 120),
    _apple("m4-pro", 64, 273),
    _apple("m4-max", 128, 546),
)

DEVICES: dict[str, Device] = {device.name: device for device in _ALL}


def find_device(name: str) -> Device:
    """The known device of that name. Raises ConfigError, listing the names."""
    found = DEVICES.get(name.lower())
    if found is None:
        raise ConfigError(
            f"device {name!r} is not known; known are this, {', '.join(DEVICES)}; for another "
            f"give --memory, --bandwidth and --flops instead"
        )
    return found
