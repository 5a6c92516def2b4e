"""What the audit log adds to the dispatcher: it logs the heads of the chains."""

from headrace.features.audit.audit_heads import AuditHeads
from headrace.store.keeper import Duty
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork

_HEADS_S = 3600.0


class _AuditWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        heads = AuditHeads(context.db, context.settings.audit_head_key)
        self.duties = ((Duty("tell_audit_heads", _HEADS_S, heads.log_heads),),)


PART = DispatcherPart(_AuditWork)
