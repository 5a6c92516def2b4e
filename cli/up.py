"""``headrace up``: the local stack in the foreground, until a signal ends it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cli import render
from cli.local.process import descendants
from cli.local.stack import Stack, running_stack
from store.settings import load_settings

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TEND_S = 0.2


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the first signal that asks to stop raise KeyboardInterrupt, and ignore more of them: stopping is bounded."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    yield


def up(models: list[str]) -> None:
    """Run the stack with these models until Ctrl-C, SIGTERM or a closed terminal."""
    settings = load_settings()
    with stopped_by_signals():
        try:
            with running_stack(settings, models, say) as stack:
                _show(stack, models)
                try:
                    while True:
                        stack.supervisor.tend()
                        time.sleep(_TEND_S)
                finally:
                    say("stopping")
        except KeyboardInterrupt:
            left = descendants(os.getpid())
            say(f"stopped; {f'left running: {sorted(left)}' if left else 'no process left'}")


def say(sentence: str) -> None:
    """Tell what happens, on stderr."""
    render.err.print(f"[dim]·[/] {sentence}", soft_wrap=True)


def _show(stack: Stack, models: list[str]) -> None:
    """Print what people need, on stdout."""
    lines = {
        "API": f"{stack.api_url}  (docs at /docs)",
        "key": stack.api_key,
        "Flower": f"{stack.flower_url}  (user {stack.flower_user}, password {stack.flower_password})",
        "model": ", ".join(models),
        "try": f'headrace submit "Why is the sky blue?" --model {models[0]} --stream',
    }
    for name, value in lines.items():
        render.out.print(f"[bold]{name:>7}[/]  {value}", soft_wrap=True)
    render.out.print("ready; Ctrl-C stops everything")
