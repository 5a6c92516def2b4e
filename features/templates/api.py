"""What prompt templates add to the API."""

from headrace.features.templates import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
