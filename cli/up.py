"""``headrace up``: the local stack in the foreground, until a signal ends it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cli import render
from cli.local.process import descendants, end
from cli.local.stack import Stack, running_stack
from store.registry import ModelVersion
from store.settings import load_settings

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TEND_S = 0.2


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Let the first signal that asks to stop raise KeyboardInterrupt, and ignore more of them: stopping is bounded.

    Yields what raises it again if there was such a signal. Python drops an exception that comes while it is in a
    callback of its own, such as the one that lets go of a module's lock after an import; so call it now and then.
    """
    signals: list[int] = []

    def on_signal(signalled: int, _frame: FrameType | None) -> None:
        signals.append(signalled)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def stop_if_asked() -> None:
        if signals:
            raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    yield stop_if_asked


def up(models: list[str]) -> None:
    """Run the stack with these models until Ctrl-C, SIGTERM or a closed terminal."""
    settings = load_settings()
    with stopped_by_signals() as stop_if_asked:
        is_started = False
        try:
            with running_stack(settings, models, saying(stop_if_asked)) as stack:
                is_started = True
                _run(stack, stop_if_asked)
        except KeyboardInterrupt:
            if not is_started:
                # The signal may have come while a process was being started, before anybody could note it.
                end(descendants(os.getpid()))
            left = descendants(os.getpid())
            say(f"stopped; {f'left running: {sorted(left)}' if left else 'no process left'}")


def _run(stack: Stack, stop_if_asked: Callable[[], None]) -> None:
    """Keep the stack's processes running until it is to stop."""
    stop_if_asked()
    _show(stack)
    try:
        while True:
            stack.supervisor.tend()
            time.sleep(_TEND_S)
            stop_if_asked()
    finally:
        say("stopping")


def say(sentence: str) -> None:
    """Tell what happens, on stderr."""
    render.err.print(f"[dim]·[/] {sentence}", soft_wrap=True)


def saying(stop_if_asked: Callable[[], None]) -> Callable[[str], None]:
    """Return ``say`` for what may take long, which stops where it says something if a signal asked for it."""

    def say_or_stop(sentence: str) -> None:
        say(sentence)
        stop_if_asked()

    return say_or_stop


def example(api_url: str, api_key: str, model: ModelVersion) -> str:
    """Return a command that asks this model for what it is for."""
    if model.task == "embed":
        body = f'{{"model": "{model.model}", "input": ["a mill on the river", "bread"]}}'
        return (
            f"curl -s {api_url}/v1/embeddings -H 'Authorization: Bearer {api_key}' "
            f"-H 'Content-Type: application/json' -d '{body}'"
        )
    return f'headrace submit "Why is the sky blue?" --model {model.model} --stream'


def _show(stack: Stack) -> None:
    """Print what people need, on stdout."""
    of_each_task = {model.task: model for model in reversed(stack.models)}
    lines = [
        ("API", f"{stack.api_url}  (docs at /docs)"),
        ("key", stack.api_key),
        ("Flower", f"{stack.flower_url}  (user {stack.flower_user}, password {stack.flower_password})"),
        ("model", ", ".join(model.model for model in stack.models)),
        *(("try", example(stack.api_url, stack.api_key, model)) for model in reversed(of_each_task.values())),
    ]
    for name, value in lines:
        render.out.print(f"[bold]{name:>7}[/]", end="  ")
        render.out.print(value, soft_wrap=True, markup=False)
    render.out.print("ready; Ctrl-C stops everything")
