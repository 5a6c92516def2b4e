"""Copies between the host and a device that do not wait for the device."""

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a host tensor on the device. The copy takes its place in the device's queue."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Numbers of a device on their way to the host. ``read`` waits for what was queued before the copy, not after."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[int]:
        """Return the numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[int] = self._values.tolist()
        return found
