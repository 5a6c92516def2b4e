"""What the audit log adds to the API."""

from headrace.features.audit import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
