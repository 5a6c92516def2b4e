"""What vector stores add to the API."""

from headrace.features.retrieval import store_file_routes, store_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(store_routes.router, store_file_routes.router))
