"""The routes of every task, and what a body sent to one of a task's URLs means: for the application and for batches.

One module is one task, and ``registry`` lists them all. OpenAI's shapes are in ``producer_api.openai``."""
