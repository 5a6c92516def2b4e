"""What the audit log adds to the dispatcher: it logs the heads of the chains."""

from headrace.features.audit.audit_heads import AuditHeads
from headrace.store.keeper import Duty
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork


class _AuditWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        settings = context.settings
        heads = AuditHeads(context.db, settings.audit_head_key)
        self.duties = ((Duty("tell_audit_heads", settings.audit_head_s, heads.log_heads),),)


PART = DispatcherPart(_AuditWork)
