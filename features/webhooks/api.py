"""What webhooks add to the API."""

from headrace.features.webhooks import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
