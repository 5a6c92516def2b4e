"""The verbs that speak to a running Headrace: submit, watch, jobs, cancel, queues, dead-letters, models.

They find it by HEADRACE_API_URL and HEADRACE_API_KEY, else by what the stack in HEADRACE_HOME wrote down.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import render
from cli.client import Client
from cli.local.home import Home
from store.errors import InvalidRequest, SettingsError
from store.settings import load_settings

JsonOption = Annotated[bool, typer.Option("--json", help="Print the server's JSON.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


def connect() -> Client:
    """Return a client for the configured API; raise SettingsError if no key is known."""
    settings = load_settings()
    home = Home(settings.home)
    record = home.record()
    url = settings.api_url or (record.api_url if record else f"http://127.0.0.1:{settings.api_port}")
    key = settings.api_key or home.api_key()
    if not key:
        raise SettingsError("no API key: set HEADRACE_API_KEY, or run `headrace up`, which makes one")
    return Client(url, key)


def submit(
    prompt: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")] = None,
    model: Annotated[str | None, typer.Option(help="name, name@version or name@alias; default: the only one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many new tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    webhook: Annotated[str | None, typer.Option(help="Where to send the job's end.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hand in a prompt."""
    text = _prompt(prompt, file)
    with connect() as client:
        sampling = {"max_tokens": max_tokens, "temperature": temperature}
        body: dict[str, Any] = {
            "task": "generate",
            "model": model or _only_model(client),
            "input": {"messages": [{"role": "user", "content": text}]},
            "sampling": {name: value for name, value in sampling.items() if value is not None},
        }
        if webhook:
            body["webhook"] = {"url": webhook}
        job = client.submit(body)
        if stream:
            _stream(client, job["id"])
        elif wait:
            _show_answer(client.wait(job["id"]), as_json=as_json)
        elif as_json:
            render.out.print_json(data=job)
        else:
            render.out.print(job["id"])


def watch(job: JobArgument) -> None:
    """Print a job's answer as it comes."""
    with connect() as client:
        _stream(client, job)


def jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, cancelled, expired.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs."""
    with connect() as client:
        found = client.jobs(status=status, model=model, limit=limit)
    if as_json:
        render.out.print_json(data=found)
    else:
        render.out.print(render.jobs_table(found) if found else "no jobs")


def cancel(job: JobArgument, as_json: JsonOption = False) -> None:
    """End a job: at once while it waits, at the next step while it runs."""
    with connect() as client:
        cancelled = client.cancel(job)
    if as_json:
        render.out.print_json(data=cancelled)
    else:
        asked = "cancellation requested" if cancelled["status"] == "running" else cancelled["status"]
        render.out.print(f"{cancelled['id']} {asked}")


def queues(
    pause: Annotated[str, typer.Option(metavar="QUEUE", help="Start none of its jobs, such as smollm2@1's.")] = "",
    resume: Annotated[str, typer.Option(metavar="QUEUE", help="Start its jobs again.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what waits in each queue, or stop one and let it go on."""
    with connect() as client:
        if pause:
            client.pause_queue(pause)
        if resume:
            client.resume_queue(resume)
        found = client.queues()
    if as_json:
        render.out.print_json(data=found)
    else:
        render.out.print(render.queues_table(found) if found else "no queues: no model is registered")


def dead_letters(
    replay: Annotated[bool, typer.Option("--replay", help="Run those again that were not yet, oldest first.")] = False,
    queue: Annotated[str | None, typer.Option(help="Only this queue's, such as smollm2@1.")] = None,
    code: Annotated[str | None, typer.Option(help="poison or max_attempts_exceeded.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the jobs that were given up, or run them again as new jobs."""
    filters: dict[str, str | int | None] = {"queue": queue, "code": code, "limit": limit}
    with connect() as client:
        found = client.replay_dead_letters(**filters) if replay else client.dead_letters(**filters)
    if as_json:
        render.out.print_json(data=found)
    elif not found:
        render.out.print("nothing to replay" if replay else "no dead letters")
    else:
        render.out.print(render.replays_table(found) if replay else render.dead_letters_table(found))


def models(as_json: JsonOption = False) -> None:
    """List the models."""
    with connect() as client:
        found = client.models()
    if as_json:
        render.out.print_json(data=found)
    else:
        render.out.print(render.models_table(found) if found else "no models: `headrace register NAME SOURCE`")


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise InvalidRequest("give either a prompt or --file")
    if prompt is not None:
        return prompt
    try:
        return sys.stdin.read() if str(file) == "-" else Path(str(file)).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}") from error


def _only_model(client: Client) -> str:
    names = [model["id"] for model in client.models()]
    if len(names) != 1:
        known = f"one of {', '.join(names)}" if names else "none is registered: `headrace register NAME SOURCE`"
        raise InvalidRequest(f"say which --model: {known}")
    return str(names[0])


def _stream(client: Client, job_id: str) -> None:
    """Print deltas as they come. An attempt that did not keep all of them begins a new line, with what it kept."""
    for event in client.follow(job_id):
        if event.name == "job.delta":
            render.write_text(event.data["text"])
        elif event.name == "job.restarted":
            render.write_text("\n")
            render.err.print("[yellow]the worker was lost, and the end of the text with it; again:[/]")
            render.write_text(event.data["text"])
        elif event.is_terminal:
            render.write_text("\n")
            _conclude(event.data)


def _show_answer(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.out.print_json(data=job)
    elif job.get("output"):
        render.write_text(job["output"]["text"] + "\n")
    _conclude(job, quiet=as_json)


def _conclude(job: dict[str, Any], *, quiet: bool = False) -> None:
    if not quiet:
        render.err.print(render.summary(job), style="dim", markup=False, soft_wrap=True)
    if job["status"] != "succeeded":
        raise typer.Exit(1)
