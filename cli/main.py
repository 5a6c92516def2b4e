"""The ``headrace`` command: the local stack, each process by itself, and the verbs that speak to a server.

Exit codes: 0 done, 1 refused, failed or unreachable, 2 wrong usage or settings, 130 interrupted.
"""

import sys
from typing import Annotated

import typer

from cli import access, admin, audit, encryption, privacy, verbs, webhooks
from cli.demo import demo as run_demo
from cli.limits import limits
from cli.up import up as run_up
from store.errors import HeadraceError, SettingsError

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--headrace-help"]}

app = typer.Typer(
    name="headrace",
    help="Asynchronous inference: a thin API, a queue, workers that batch continuously.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(verbs.submit)
app.command()(verbs.watch)
app.command()(verbs.jobs)
app.command()(verbs.cancel)
app.command()(verbs.queues)
app.command("dead-letters")(verbs.dead_letters)
app.command()(verbs.models)
app.command()(admin.register)
app.command()(admin.measure)
app.command()(admin.price)
app.add_typer(access.keys, name="keys")
app.add_typer(access.tenants_app, name="tenants")
app.add_typer(audit.app, name="audit")
app.add_typer(limits, name="limits")
app.add_typer(privacy.app, name="retention")
app.command()(privacy.purge)
app.add_typer(encryption.app, name="encryption")
app.add_typer(webhooks.app, name="webhooks")


@app.command()
def up(
    model: Annotated[list[str] | None, typer.Option(help="Repeatable: one worker for each.")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C."""
    run_up(model or ["smollm2"])


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="smollm2, or fake: no neural model, in seconds.")] = "smollm2",
) -> None:
    """Show the whole path at work on this machine, and end."""
    run_demo(model)


@app.command(context_settings=_PASS_ON)
def api(context: typer.Context) -> None:
    """Run the API alone."""
    admin.run_module("producer_api", *context.args)


@app.command(context_settings=_PASS_ON)
def worker(context: typer.Context) -> None:
    """Run one worker alone: --model NAME."""
    admin.run_module("workers", *context.args)


@app.command(context_settings=_PASS_ON)
def dispatcher(context: typer.Context) -> None:
    """Run the dispatcher alone."""
    admin.run_module("workers.dispatcher", *context.args)


@app.command(context_settings=_PASS_ON)
def policy(context: typer.Context) -> None:
    """Try policies out: test FILE, evaluate."""
    admin.run_module("cli.policy", *context.args)


@app.command(context_settings=_PASS_ON)
def migrate(context: typer.Context) -> None:
    """Bring the database to this version's schema."""
    admin.run_module("migrations", *context.args)


def main() -> None:
    """Run the command; what a caller can meet is said in one line."""
    try:
        app()
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {' '.join(error.message.split())}\n")
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
