"""Row security: the tenant is set per transaction, and no connection keeps it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from headrace.store.db.database import Database
from headrace.store.errors import InvalidRequest
from headrace.store.settings import Settings


@pytest.fixture
def single(settings: Settings) -> Iterator[Database]:
    """A pool with one connection, so that all users share it."""
    database = Database(settings.database_url, pool_size=1, application_name="single")
    yield database
    database.close()


def whose(connection: Connection) -> str | None:
    found: str | None = connection.execute(text("SELECT current_setting('headrace.tenant', true)")).scalar_one()
    return found or None


class TestTenantOfATransaction:
    def test_every_statement_knows_it_and_the_connection_forgets_it(self, single: Database) -> None:
        with single.begin(tenant_id="ten_a") as connection:
            assert [whose(connection), whose(connection)] == ["ten_a", "ten_a"]
        with single.autocommit(tenant_id="ten_b") as connection:
            assert [whose(connection), whose(connection)] == ["ten_b", "ten_b"]
        with single.begin() as connection:
            assert whose(connection) is None
        with single.autocommit() as connection:
            assert whose(connection) is None

    @pytest.mark.parametrize("take", ["begin", "autocommit"])
    def test_a_failure_is_the_statements_own_and_leaves_nothing(self, single: Database, take: str) -> None:
        with pytest.raises(InvalidRequest), getattr(single, take)(tenant_id="ten_a") as connection:
            connection.execute(text("SELECT 1 / 0"))
        twice = text("INSERT INTO tenants (id, name, webhook_secret) VALUES ('t', 'n', 's'), ('t', 'm', 's')")
        with pytest.raises(IntegrityError, match="pk_tenants"), getattr(single, take)(tenant_id="ten_a") as connection:
            connection.execute(twice)
        with single.begin() as connection:
            assert whose(connection) is None

    def test_it_holds_for_many_sets_of_values_too(self, single: Database) -> None:
        with single.begin(tenant_id="ten_a") as connection:
            values = [{"id": f"ten_{n}", "name": f"n{n}"} for n in range(3)]
            insert = text(
                "INSERT INTO tenants (id, name, webhook_secret) VALUES (:id, :name, current_setting('headrace.tenant'))"
            )
            connection.execute(insert, values)
            said = connection.execute(text("SELECT DISTINCT webhook_secret FROM tenants")).scalars().all()
        assert list(said) == ["ten_a"]
