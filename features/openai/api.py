"""What the OpenAI face adds to the API beside the URLs of its task."""

from headrace.features.openai import moderation_routes, token_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(moderation_routes.router, token_routes.router))
