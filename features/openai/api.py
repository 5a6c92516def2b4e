"""What the OpenAI face adds to the API beside the URLs of its task."""

from headrace.features.openai import token_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(token_routes.router,))
