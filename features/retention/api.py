"""What retention adds to the API: its routes."""

from headrace.features.retention import retention_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(retention_routes.router,))
