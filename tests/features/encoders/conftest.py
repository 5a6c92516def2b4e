"""The fixtures of models and prompts, beside those of all features."""

from tests.models.conftest import *  # noqa: F403 - fixtures are found by their names
from tests.prompts.conftest import *  # noqa: F403
