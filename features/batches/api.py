"""What batches add to the API: their routes, and in one API process the keeper."""

from headrace.features.batches import batch_routes, message_batch_routes
from headrace.features.batches.batch_keeper import keeper_for
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(batch_routes.router, message_batch_routes.router), work=keeper_for)
