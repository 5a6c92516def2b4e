"""``headrace webhooks``: endpoints, deliveries, redelivery. These commands use the API."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group

from headrace.cli import render
from headrace.cli.client.verbs import connect
from headrace.cli.groups import noun
from headrace.cli.render import JsonOption, show
from headrace.store.errors import InvalidRequest
from headrace.store.schema.event_types import EVERY_EVENT, REGISTRY_EVENTS

app = noun("Webhooks: endpoints, deliveries, and what is sent again.")

EndpointArgument = Annotated[str, typer.Argument(metavar="ENDPOINT", help="An endpoint's id (we_…).")]
DeliveryArgument = Annotated[str, typer.Argument(metavar="DELIVERY", help="A delivery's id (evt_…).")]


@app.command()
def endpoints(as_json: JsonOption = False) -> None:
    """List the endpoints, with the reason if one is disabled."""
    with connect() as client:
        found = client.webhook_endpoints()
    show(found, render.endpoints_table(found) if found else "no webhook endpoints", as_json=as_json)


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="https, at a public address.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Such as job.failed; repeatable. Default: all of the tenant.")
    ] = None,
    operator: Annotated[
        bool, typer.Option("--operator", help="All events of rollouts and versions; needs registry:admin.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create an endpoint and print its secret, which is shown only now."""
    events = [*(event or []), *(sorted(REGISTRY_EVENTS) if operator else [])]
    with connect() as client:
        made = client.create_webhook_endpoint(url, events or [EVERY_EVENT])
    show(made, f"{made['id']}\nsecret: {made['secret']}", as_json=as_json)


@app.command()
def delete(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Delete an endpoint and its deliveries."""
    with connect() as client:
        client.delete_webhook_endpoint(endpoint)
    show({"id": endpoint, "deleted": True}, f"{endpoint} deleted", as_json=as_json)


@app.command()
def deliveries(
    endpoint: Annotated[str | None, typer.Option(help="Only to this endpoint.")] = None,
    job: Annotated[str | None, typer.Option(help="Only of this job.")] = None,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the newest deliveries."""
    with connect() as client:
        found = client.webhook_deliveries(endpoint_id=endpoint, job_id=job, status=status, limit=limit)
    show(found, render.deliveries_table(found) if found else "no deliveries", as_json=as_json)


@app.command()
def delivery(delivery: DeliveryArgument, as_json: JsonOption = False) -> None:
    """Show the attempts of a delivery: time, duration, answer or error."""
    with connect() as client:
        found = client.webhook_delivery(delivery)
    head = f"{found['id']} {found['type']} {found['status']} {found['url']}"
    tries = render.tries_table(found["tries"]) if found["tries"] else "not tried yet"
    show(found, Group(head, tries), as_json=as_json)


@app.command()
def redeliver(delivery: DeliveryArgument, as_json: JsonOption = False) -> None:
    """Send an event again now, with the same id."""
    with connect() as client:
        found = client.redeliver(delivery)
    show(found, f"{delivery} is on its way again", as_json=as_json)


@app.command("test")
def send_test(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Send an endpoint a signed webhook.test and print its delivery's id."""
    with connect() as client:
        queued = client.test_webhook_endpoint(endpoint)
    show(queued, queued["id"], as_json=as_json)


@app.command()
def enable(endpoint: EndpointArgument, as_json: JsonOption = False) -> None:
    """Enable an endpoint that was disabled; `recover` sends the events that it missed."""
    with connect() as client:
        found = client.enable_webhook_endpoint(endpoint)
    show(found, f"{endpoint} enabled", as_json=as_json)


@app.command()
def recover(
    endpoint: EndpointArgument,
    since: Annotated[str, typer.Option(help="From this time on, such as 2026-11-26T12:00 (UTC).")],
    as_json: JsonOption = False,
) -> None:
    """Send an endpoint the events that it missed since a time, as far as their jobs are stored."""
    with connect() as client:
        num_queued = client.recover_webhook_endpoint(endpoint, _seconds(since))
    show({"queued": num_queued}, f"{num_queued} events are on their way", as_json=as_json)


def _seconds(since: str) -> int:
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        raise InvalidRequest(f"--since is a time such as 2026-11-26T12:00, not {since!r}") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
