"""What limits and usage add to the API: their routes."""

from headrace.features.limits import limit_routes, usage_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(usage_routes.router, limit_routes.router))
