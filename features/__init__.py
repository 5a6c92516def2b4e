"""What plugs into the core: one folder for each feature, with everything of it.

``headrace.assembly`` lists the features and finds their parts. No module of the core imports one; of each other they
import only what pyproject.toml draws.
"""
