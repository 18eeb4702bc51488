"""What vLLM's EPLB asks of torch's accelerators, where there is none."""

from typing import Any

import torch


class Event:
    """An event or a stream where there is no accelerator: all is done when it is called."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def wait_stream(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: Any) -> float:
        return 0.0


def without_accelerator() -> None:
    """Have events and streams be done when they are called."""
    for name in ("Event", "Stream"):
        setattr(torch, name, Event)
    torch.accelerator.current_stream = Event  # type: ignore[assignment]
    for name in ("set_stream", "set_device_index", "current_accelerator"):
        setattr(torch.accelerator, name, lambda *_: None)
