"""What Celery tasks add to the API: their routes."""

from headrace.features.celery_tasks import routes
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,))
