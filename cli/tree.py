"""The whole command tree. Each part is imported when it is used, so that a short verb starts quickly.

The name of a group alone lists or shows. Frequent commands have a short form at the top level.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from headrace.assembly import parts
from headrace.cli.groups import LazyGroup, Node, VerbsPart

_HERE, _JOBS, _SERVING = "This machine", "Jobs", "Models, queues, webhooks"
_TENANTS, _OPERATING, _PROCESSES = "Tenants", "Operating", "Processes"

_JOB = {
    "list": Node("List the newest jobs.", "headrace.cli.client.verbs:list_jobs"),
    "submit": Node("Submit a prompt.", "headrace.cli.client.verbs:submit"),
    "show": Node("Show a job: its state, times and answer.", "headrace.cli.client.verbs:show_job"),
    "watch": Node("Print a job's answer while it is generated.", "headrace.cli.client.verbs:watch"),
    "cancel": Node("Cancel a job.", "headrace.cli.client.verbs:cancel"),
}
_DEAD_LETTERS = {
    "list": Node("List the dead letters (jobs that failed for good).", "headrace.cli.client.verbs:list_dead_letters"),
    "replay": Node("Replay dead letters as new jobs.", "headrace.cli.client.verbs:replay"),
}
_MODELS = {
    "list": Node("List the models.", "headrace.cli.client.verbs:list_models"),
    "show": Node("Show the versions of a model.", "headrace.cli.client.models:show_model"),
    "alias": Node("Let an alias name a version.", "headrace.cli.client.models:set_alias"),
    "unalias": Node("Remove an alias.", "headrace.cli.client.models:remove_alias"),
    "retire": Node("Retire a version: it takes no new jobs.", "headrace.cli.client.models:retire"),
    "revive": Node("Take a retired version back into use.", "headrace.cli.client.models:revive"),
    "delete": Node("Delete a retired version without jobs.", "headrace.cli.operator.admin:delete_version"),
    "register": Node("Register a model's files as its next version.", "headrace.cli.operator.processes:register"),
    "quantize": Node("Register a version's files in another number format.", "headrace.cli.client.quality:quantize"),
    "prompt": Node("Register a version's weights with a default template.", "headrace.cli.client.models:set_prompt"),
    "quality": Node("Show the quality reports of a model's versions.", "headrace.cli.client.quality:quality"),
    "bound": Node("Show or set what the quality of versions must keep.", "headrace.cli.client.quality:set_bound"),
    "measure": Node("Measure a version, or the formats of a folder.", "headrace.cli.operator.processes:measure"),
    "price": Node("Set the price of a model version.", "headrace.cli.operator.admin:price"),
}
_QUEUES = {
    "list": Node("Show waiting and running jobs of each queue.", "headrace.cli.client.verbs:list_queues"),
    "pause": Node("Pause a queue.", "headrace.cli.client.verbs:pause"),
    "resume": Node("Resume a queue.", "headrace.cli.client.verbs:resume"),
}
_MIGRATE = {
    "upgrade": Node("Upgrade the database schema.", "headrace.cli.operator.processes:upgrade"),
    "roles": Node("The same, and let the processes' roles log in.", "headrace.cli.operator.processes:roles"),
    "history": Node("List the revisions.", "headrace.cli.operator.processes:history"),
    "check": Node("Compare the schema with the code's tables.", "headrace.cli.operator.processes:check"),
    "vectors": Node("Build the search indexes of vector stores.", "headrace.cli.operator.processes:vectors"),
}


def _of(panel: str, node: Node) -> Node:
    return Node(node.help, node.where, node.parts, panel)


TREE = {
    "up": Node("Run everything on this machine until Ctrl-C.", "headrace.cli.up:up", panel=_HERE),
    "demo": Node("Run a burst of jobs on this machine as a demonstration.", "headrace.cli.demo.demo:demo", panel=_HERE),
    "submit": _of(_JOBS, _JOB["submit"]),
    "watch": _of(_JOBS, _JOB["watch"]),
    "show": _of(_JOBS, _JOB["show"]),
    "job": _of(_JOBS, _JOB["show"]),
    "cancel": _of(_JOBS, _JOB["cancel"]),
    "jobs": Node("Jobs: list, submit, show, watch, cancel.", parts=_JOB, panel=_JOBS),
    "dead-letters": Node("Dead letters: list, replay.", parts=_DEAD_LETTERS, panel=_JOBS),
    "top": Node("Show queues, workers and speeds as they change.", "headrace.cli.client.top:top", panel=_SERVING),
    "models": Node("Models: list, show, register, alias, retire, …", parts=_MODELS, panel=_SERVING),
    "register": _of(_SERVING, _MODELS["register"]),
    "new-task": Node("Write the package of a task of your own.", "headrace.cli.new_task:new_task", panel=_SERVING),
    "queues": Node("Queues: list, pause, resume.", parts=_QUEUES, panel=_SERVING),
    "tenants": Node(
        "Tenants: list, create, rename, disable, enable.", "headrace.cli.operator.access:tenants_app", panel=_TENANTS
    ),
    "keys": Node("API keys: list, create, rotate, revoke.", "headrace.cli.operator.access:keys", panel=_TENANTS),
    "migrate": Node("The database's schema: upgrade, roles, history, check.", parts=_MIGRATE, panel=_OPERATING),
    "api": Node("Run only the API.", "headrace.cli.operator.processes:api", panel=_PROCESSES),
    "worker": Node("Run one worker.", "headrace.cli.operator.processes:worker", panel=_PROCESSES),
    "dispatcher": Node("Run a dispatcher.", "headrace.cli.operator.processes:dispatcher", panel=_PROCESSES),
}
for _part in parts("verbs", VerbsPart):
    TREE |= _part.nodes


class _Root(LazyGroup):
    nodes = TREE


app = typer.Typer(name="headrace", cls=_Root, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def headrace(
    is_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Asynchronous inference: a thin API, a queue, workers that batch continuously.

    The name of a group alone lists or shows: `headrace keys` is `headrace keys list`.
    """
