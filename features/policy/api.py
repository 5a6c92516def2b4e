"""What policies add to the API."""

from headrace.features.policy import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
