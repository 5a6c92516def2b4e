"""What the machine has: an NVIDIA card, instructions for bfloat16, and memory that a model host may use."""

import shutil
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

_LEAST_BYTES = 64 << 20

CPU_INFO = Path("/proc/cpuinfo")


def has_nvidia_card() -> bool:
    """True if the machine has an NVIDIA card with a driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_bfloat16() -> bool:
    """True if the processor has instructions for products of bfloat16 numbers, or if that is not known."""
    try:
        flags = set(CPU_INFO.read_text().split())
    except OSError:
        return True
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def parse_memory(given: str) -> int:
    """Return the bytes of ``4GiB`` or ``512MiB``, memory for workers. Raises ValueError with a sentence."""
    try:
        num_bytes = int(TypeAdapter(ByteSize).validate_python(given))
    except ValidationError:
        raise ValueError(f"{given!r} is no size: write 4GiB or 512MiB") from None
    if num_bytes < _LEAST_BYTES:
        raise ValueError(f"{given!r} is too little for a worker: write 4GiB or 512MiB")
    return num_bytes
