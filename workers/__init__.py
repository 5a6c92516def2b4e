"""The processes besides the API: workers that run jobs, the dispatcher, and Flower.

``worker_runtime`` builds the parts of a worker; each folder is one subject.
"""
