"""The fixtures of the core's tests: a tenant and its jobs, an API with its clients, a worker, the command line.

A feature has tests of each of these sides in one folder, and pytest looks for fixtures in the folders above alone.
"""

from tests.cli.conftest import *  # noqa: F403 - fixtures are found by their names
from tests.producer_api.conftest import *  # noqa: F403
from tests.store.conftest import *  # noqa: F403
from tests.workers.conftest import *  # noqa: F403
