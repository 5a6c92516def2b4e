"""What rollouts add to the API."""

from headrace.features.rollouts import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
