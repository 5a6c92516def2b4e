"""What the machine has: an NVIDIA card, and a processor with instructions for bfloat16."""

import shutil
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def has_nvidia_card() -> bool:
    """True if the machine has an NVIDIA card with a driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_bfloat16() -> bool:
    """True if the processor has instructions for products of bfloat16 numbers, or if that is not known."""
    try:
        flags = set(_CPU_INFO.read_text().split())
    except OSError:
        return True
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
