"""``headrace plan``: a forecast of waits and cost, which ``features.planner`` computes."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.operator.processes import become, words
from headrace.cli.render import JsonOption
from headrace.store.errors import Unavailable


def plan(
    trace: Annotated[
        str,
        typer.Argument(
            help="A CSV file; history:NAME, the ended jobs of a model; or generated jobs: diurnal, bursty, batch-heavy."
        ),
    ],
    rates: Annotated[
        Path | None, typer.Option(help="JSON with the speed of one worker; by default what the history shows.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="The rates of another version, to compare with.")] = None,
    workers: Annotated[str | None, typer.Option(help="Least and most workers of autoscaling; default 0..4.")] = None,
    fixed: Annotated[
        str | None, typer.Option(help="Fixed numbers of workers to try, such as 1,2; default: up to four of them.")
    ] = None,
    wait_s: Annotated[
        float | None,
        typer.Option(help="Start 95 of 100 standard jobs within these seconds; default HEADRACE_AUTOSCALE_WAIT_S."),
    ] = None,
    worker_hour: Annotated[float | None, typer.Option(help="What a worker costs in an hour.")] = None,
    within: Annotated[float | None, typer.Option(help="Hours of the history; default 24.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Jobs to generate; default 2000.")] = None,
    hours: Annotated[float | None, typer.Option(help="Time that they are spread over; default 24.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Mean of the generated prompts; default 200.")] = None,
    output_tokens: Annotated[int | None, typer.Option(help="Mean of the generated outputs; default 150.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the generated jobs; default 1.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it into this SVG file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Forecast waits and cost for fixed numbers of workers and for autoscaling (docs/planning.md)."""
    if importlib.util.find_spec("simpy") is None:
        raise Unavailable("`headrace plan` needs simpy: install Headrace with its extra `plan`")
    given = {
        "--rates": rates,
        "--against": against,
        "--workers": workers,
        "--fixed": fixed,
        "--wait-s": wait_s,
        "--worker-hour": worker_hour,
        "--within": within,
        "--jobs": jobs,
        "--hours": hours,
        "--prompt-tokens": prompt_tokens,
        "--output-tokens": output_tokens,
        "--seed": seed,
        "--picture": picture,
    }
    become("headrace.features.planner", trace, *words(given), *(["--json"] if as_json else []))
