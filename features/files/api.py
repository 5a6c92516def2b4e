"""What files add to the API: their routes and those of uploads, the blob storage, and its duties."""

from headrace.features.files import file_routes, result_routes, upload_routes
from headrace.features.files.file_work import FileWork
from headrace.producer_api.api_part import ApiPart

PART = ApiPart(routers=(file_routes.router, upload_routes.router, result_routes.router), work=FileWork)
