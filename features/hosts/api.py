"""What model hosts add to the API: the route that lists them."""

from headrace.features.hosts import host_routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(host_routes.router,))
