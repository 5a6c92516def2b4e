"""What vector stores add to the dispatcher: it removes those that were deleted or have expired, in steps."""

from headrace.features.retrieval import vector_stores
from headrace.store.keeper import Duty
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork

REMOVE_S = 60.0


class _RetrievalWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        self.duties = ((Duty("remove_vector_stores", REMOVE_S, lambda: vector_stores.remove_ended(context.db)),),)


PART = DispatcherPart(_RetrievalWork)
