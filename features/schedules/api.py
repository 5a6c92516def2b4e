"""What schedules add to the API: their routes, and in one API process the keeper."""

from headrace.features.schedules import routes
from headrace.features.schedules.keeper import ScheduleKeeper
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(routes.router,), work=ScheduleKeeper)
