"""Commands for a running Headrace: jobs, queues, dead letters, models.

They use HEADRACE_API_URL and HEADRACE_API_KEY, else the connection data of the running stack (``cli.local.home``).
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.text import Text

from headrace.cli import render
from headrace.cli.client.http_client import OperatorClient
from headrace.cli.client.job_timeline import TimelineChart, lanes
from headrace.cli.client.waiting import waiting, what_for
from headrace.cli.local.home import find_home
from headrace.cli.render import JsonOption, out, say, show, warn
from headrace.client import JobBody, JobInfo
from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.settings import load_settings

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue, such as smollm2@1.")]
QueueOption = Annotated[str | None, typer.Option(help="Only this queue's, such as smollm2@1.")]
CodeOption = Annotated[str | None, typer.Option(help="poison or max_attempts_exceeded.")]
DeadLettersArgument = Annotated[
    list[str] | None, typer.Argument(metavar="JOB", help="The ids of dead letters; without one, all that match.")
]
VarOption = Annotated[
    list[str] | None, typer.Option("--var", help="A variable of the template: name=text, or name:=JSON.")
]
LimitOption = Annotated[int, typer.Option(min=1, max=100, help="At most so many.")]


def connect() -> OperatorClient:
    """Return a client for the configured API. Raises SettingsError if there is no key."""
    settings = load_settings()
    if settings.api_url:
        # The key of a local stack is never sent to another server.
        if not settings.api_key:
            raise SettingsError("no API key: HEADRACE_API_URL needs HEADRACE_API_KEY beside it")
        return OperatorClient(settings.api_url, settings.api_key, on_warning=warn)
    home = find_home(settings)
    record = home.running()
    if record is None and not settings.api_key:
        state = "the stack is still starting" if home.is_locked() else "no stack is running"
        raise SettingsError(
            f"{state} in {home.path}: wait until `headrace up` says that it is ready, or name a server with "
            "HEADRACE_API_URL and HEADRACE_API_KEY"
        )
    url = record.api_url if record else f"http://127.0.0.1:{settings.api_port}"
    key = settings.api_key or home.api_key()
    if not key:
        raise SettingsError("no API key: set HEADRACE_API_KEY, or run `headrace up`, which makes one")
    if record:
        render.say_stack(f"{home.path} at {url}")
    return OperatorClient(url, key, on_warning=warn)


def submit(
    prompt: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to ask.")] = None,
    template: Annotated[
        str | None, typer.Option("--prompt", help="A prompt template, NAME or NAME@2; its messages come first.")
    ] = None,
    variables: VarOption = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="name, name@version or name@alias; default: the only one, or the only one with a worker."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="At most this many new tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    webhook: Annotated[str | None, typer.Option(help="Where to send the job's end.")] = None,
    job_file: Annotated[
        Path | None, typer.Option("--job", help="The whole body of the job, as JSON in a file; - is stdin.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the answer and print it.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Submit a prompt and print the job's id, or with --wait or --stream its answer; exit 1 if the job fails.

    With --stream and --json each event is a line: {"id", "event", "data"}.
    """
    others = (prompt, template, variables, file, model, max_tokens, temperature, webhook)
    if job_file is not None and any(other is not None for other in others):
        raise InvalidRequest("with --job everything stands in the file: leave the prompt and its options out")
    given = None if job_file is None else _job_in(job_file)
    source = {} if given is not None else _source(prompt, file, template, variables)
    with connect() as client:
        sampling = {"max_tokens": max_tokens, "temperature": temperature}
        body: JobBody = given or {
            "task": "generate",
            "model": model or _only_model(client),
            "input": source,
            "sampling": {name: value for name, value in sampling.items() if value is not None},
        }
        if webhook:
            body["webhook"] = {"url": webhook}
        job = client.submit(**body)
        if not (stream or wait):
            show(job, job["id"], as_json=as_json)
            return
        say(f"{job['id']} accepted; Ctrl-C lets it go on without you, `headrace watch {job['id']}` comes back")
        if stream:
            _stream(client, job["id"], as_json=as_json)
        else:
            with waiting(client, job["id"]):
                ended = client.wait(job["id"])
            _show_answer(ended, as_json=as_json)


def show_job(job: JobArgument, as_json: JsonOption = False) -> None:
    """Show a job: state, position, why it waits, times, tokens, error, timeline and answer."""
    with connect() as client:
        found = client.job(job)
        if as_json:
            show(found, "", as_json=True)
            return
        timeline, deliveries = client.whole_timeline(job), client.job_deliveries(job)
        waits_alone = found["status"] == "queued" and not found.get("steps")
        reason = what_for(found, client.live()["state"]) if waits_alone else ""
    out.print(render.job_facts(found, reason), soft_wrap=True)
    out.print(TimelineChart(lanes(found, timeline, deliveries, datetime.now(UTC).timestamp()), timeline["events"]))
    if answer := (found["output"] or {}).get("text"):
        out.print(Text(f"\n{answer}"), soft_wrap=True)


def watch(job: JobArgument, as_json: JsonOption = False) -> None:
    """Print a job's answer while it is generated; exit 1 if it fails. With --json each event is a line."""
    with connect() as client:
        _stream(client, job, as_json=as_json)


def list_jobs(
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, cancelled, expired.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs."""
    found: list[JobInfo] = []
    with connect() as client:
        # A page may have few jobs or none although older ones match.
        after, has_more = None, True
        while has_more and len(found) < limit:
            page = client.jobs(status=status, model=model, limit=limit - len(found), after=after)
            found += page["data"]
            after, has_more = page["last_id"], page["has_more"]
    show(found, render.jobs_table(found) if found else "no jobs", as_json=as_json)


def cancel(job: JobArgument, as_json: JsonOption = False) -> None:
    """Cancel a job: at once while it waits, at the next step while it runs."""
    with connect() as client:
        cancelled = client.cancel(job)
    asked = "cancellation requested" if cancelled["status"] == "running" else cancelled["status"]
    show(cancelled, f"{cancelled['id']} {asked}", as_json=as_json)


def list_queues(as_json: JsonOption = False) -> None:
    """Show what waits and runs in each queue, and how many workers it has."""
    with connect() as client:
        found = client.queues()
    show(found, render.queues_table(found) if found else "no queues: no model is registered", as_json=as_json)


def pause(queue: QueueArgument, as_json: JsonOption = False) -> None:
    """Start no more jobs of a queue until it is resumed. Running jobs continue."""
    with connect() as client:
        show(client.pause_queue(queue), f"{queue} is paused", as_json=as_json)


def resume(queue: QueueArgument, as_json: JsonOption = False) -> None:
    """Resume a queue."""
    with connect() as client:
        show(client.resume_queue(queue), f"{queue} goes on", as_json=as_json)


def list_dead_letters(
    queue: QueueOption = None, code: CodeOption = None, limit: LimitOption = 20, as_json: JsonOption = False
) -> None:
    """List the dead letters (jobs that failed for good), newest first."""
    with connect() as client:
        found = client.dead_letters(queue=queue, code=code, limit=limit)
    show(found, render.dead_letters_table(found) if found else "no dead letters", as_json=as_json)


def replay(
    jobs: DeadLettersArgument = None,
    queue: QueueOption = None,
    code: CodeOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Replay dead letters as new jobs: these, or the oldest ones that were not replayed yet."""
    if jobs and (queue or code):
        raise InvalidRequest("give the ids of jobs, or --queue and --code")
    with connect() as client:
        if jobs:
            found = [client.replay_dead_letter(job) for job in jobs]
        else:
            found = client.replay_dead_letters(queue=queue, code=code, limit=limit)
    show(found, render.replays_table(found) if found else "nothing to replay", as_json=as_json)


def list_models(as_json: JsonOption = False) -> None:
    """List the models."""
    with connect() as client:
        found = client.models()
    told = render.models_table(found) if found else "no models: `headrace register NAME FOLDER`"
    show(found, told, as_json=as_json)


def read_variables(given: list[str] | None) -> dict[str, Any]:
    """Return the values of ``name=text`` and ``name:=JSON``. Raises InvalidRequest."""
    values: dict[str, Any] = {}
    for one in given or ():
        name, equals, text = one.partition("=")
        if not equals or not name.removesuffix(":"):
            raise InvalidRequest(f"--var is name=text or name:=JSON, not {one[:80]!r}", param="var")
        try:
            values[name.removesuffix(":")] = json.loads(text) if name.endswith(":") else text
        except ValueError as error:
            raise InvalidRequest(f"--var {name}=: this is not JSON: {error}", param="var") from error
    return values


def _source(prompt: str | None, file: Path | None, template: str | None, variables: list[str] | None) -> dict[str, Any]:
    """Return the input of a job: a template's messages, then the text."""
    if template is None and variables:
        raise InvalidRequest("--var goes with --prompt", param="var")
    is_alone = template is not None and prompt is None and file is None
    own = {} if is_alone else {"messages": [{"role": "user", "content": _prompt(prompt, file)}]}
    return own if template is None else {"template": {"id": template, "variables": read_variables(variables)}, **own}


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is None:
        return prompt
    if file is None or prompt is not None:
        raise InvalidRequest("give either a prompt or --file")
    return _text_of(file)


def _text_of(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}") from error


def _job_in(file: Path) -> JobBody:
    """Return the body of a job from a file; the API checks its fields. Raises InvalidRequest if it is no object."""
    try:
        body = json.loads(_text_of(file))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{file} is no JSON: {error}") from error
    if not isinstance(body, dict) or not body or "idempotency_key" in body:
        raise InvalidRequest(f"{file} must have the body of a job, as for POST /v1/jobs: an object of its fields")
    return cast(JobBody, body)


def _only_model(client: OperatorClient) -> str:
    """Return the only model, or the only one with a worker. Raises InvalidRequest if there are several."""
    names = [str(model["id"]) for model in client.models()]
    if len(names) > 1:
        served = {queue["name"].rpartition("@")[0] for queue in client.queues() if queue.get("workers")}
        names = sorted(served) if len(served) == 1 else names
    if len(names) != 1:
        known = f"one of {', '.join(names)}" if names else "none is registered: `headrace register NAME FOLDER`"
        raise InvalidRequest(f"say which --model: {known}")
    return names[0]


def _stream(client: OperatorClient, job_id: str, *, as_json: bool) -> None:
    """Print deltas. An attempt that did not keep all of them starts a new line with the kept ones."""
    with waiting(client, job_id) as has_begun:
        for event in client.stream(job_id):
            if event.name not in {"job.queued", "job.started"}:
                has_begun.set()
            if as_json:
                render.print_line({"id": event.id, "event": event.name, "data": event.data})
            elif event.name == "job.progress":
                render.err.print(render.progress(event.data), style="dim", soft_wrap=True, markup=False)
            else:
                if event.is_restart:
                    render.write_text("\n")
                    warn("the worker was lost, and the end of the text with it; again:")
                render.write_text(event.text)
            if event.is_terminal:
                if not as_json:
                    render.write_text("\n")
                _conclude(cast(JobInfo, event.data), quiet=as_json)


def _show_answer(job: JobInfo, *, as_json: bool) -> None:
    if as_json:
        show(job, "", as_json=True)
    elif job["output"]:
        render.write_text(job["output"]["text"] + "\n")
    _conclude(job, quiet=as_json)


def _conclude(job: JobInfo, *, quiet: bool = False) -> None:
    """Print the result of a job on stderr; exit 1 unless it succeeded."""
    if not quiet:
        render.err.print(render.summary(job), style="dim", soft_wrap=True)
    if job["status"] != "succeeded":
        raise typer.Exit(1)
