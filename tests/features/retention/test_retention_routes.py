"""How long an organization keeps contents: its own times beside the operator's, in days."""

from headrace.features.retention.retention import Retention, set_retention
from headrace.store.db.database import Database
from headrace.store.tenants import api_keys
from headrace.store.tenants.tenant_limits import SetBy
from tests.producer_api.calling import error_of
from tests.producer_api.conftest import MakeClient

PATH = "/v1/organization/retention"
OPERATOR = {"inputs_days": 7.0, "outputs_days": 3.0, "deliveries_days": 30.0, "files_days": None}
NONE = dict.fromkeys(OPERATOR)


def test_the_shorter_of_the_operators_and_the_own_time_holds(
    db: Database, tenant: str, make_client: MakeClient, other_key: str
) -> None:
    admin = make_client(api_keys.create_key(db, tenant, "admin", ["admin"], actor="tests"))
    set_retention(db, tenant, Retention(outputs_s=3 * 86_400), set_by=SetBy.OPERATOR, actor="tests")
    fields = {"object": "organization.retention", "id": tenant, "operator": OPERATOR}
    assert admin.get(PATH).json() == {**fields, "retention": OPERATOR, "own": NONE}
    own = {"inputs_days": 7.0, "outputs_days": 0.5, "deliveries_days": None, "files_days": 9.0}
    told = {**fields, "retention": OPERATOR | {"outputs_days": 0.5, "files_days": 9.0}, "own": own}
    assert admin.put(PATH, json=own).json() == admin.get(PATH).json() == told
    for days, most in (({"outputs_days": 3.5}, "3"), ({"deliveries_days": 31}, "30")):
        refused = admin.put(PATH, json=days)
        (name,) = days
        assert (refused.status_code, error_of(refused)["param"]) == (400, name)
        assert f" {most} at most" in error_of(refused)["message"]
    assert admin.get(PATH).json() == told, "a refused time changes nothing"
    assert make_client(other_key).get(PATH).json()["own"] == NONE
    assert admin.put(PATH, json={"files_days": 0}).json()["own"] == NONE | {"files_days": 0.0}
