"""Settings of each process with its own database role, as in the shipped deployment."""

from headrace.store.db.roles import API, WORKER, url_of
from headrace.store.settings import Settings

ROLE_PASSWORD = "of the roles, where the server asks"


def role_url(database_url: str, role: str) -> str:
    """Return the address by which a role logs in to the tests' database."""
    return url_of(database_url, role, ROLE_PASSWORD)


def as_api(settings: Settings) -> Settings:
    """Return the settings of an API process."""
    return settings.model_copy(update={"database_url": role_url(settings.database_url, API)})


def as_worker(settings: Settings) -> Settings:
    """Return the settings of a worker or a dispatcher."""
    return settings.model_copy(update={"database_url": role_url(settings.database_url, WORKER)})
