"""What the console adds to the API: its page, and the route of live figures."""

from headrace.features.console import live_routes, page_files
from headrace.features.console.live_poll import LivePoll
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(live_routes.router,), pages=page_files.routes, work=LivePoll)
