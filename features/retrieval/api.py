"""What vector stores add to the API: their routes, and the removal, in steps, of those that were deleted or expired.

It runs here and not in the dispatcher, because only the API has the rights to the rows.
"""

from headrace.features.retrieval import store_file_routes, store_routes, vector_stores
from headrace.producer_api.api_part import ApiPart, ApiWork
from headrace.producer_api.runtime import Runtime
from headrace.store.keeper import Duty

REMOVE_S = 60.0


class _RetrievalWork(ApiWork):
    def __init__(self, runtime: Runtime) -> None:
        db = runtime.duties_db
        self.duties = ((Duty("remove_vector_stores", REMOVE_S, lambda: vector_stores.remove_ended(db)),),)


PART = ApiPart(routers=(store_routes.router, store_file_routes.router), work=_RetrievalWork)
