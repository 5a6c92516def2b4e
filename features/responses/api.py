"""What the Responses API adds to the API beside the URLs of its task."""

from headrace.features.responses import conversation_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(conversation_routes.router,))
