"""What rollouts add to the dispatcher: the duty that takes them forward."""

from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import RolloutKeeper
from headrace.store.keeper import Duty
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork

ROLLOUT_S = 2.0
_LOCK_TIMEOUT_S = 2.0


class _RolloutWork(DispatcherWork):
    def __init__(self, context: DispatcherContext) -> None:
        settings = context.settings
        self._metrics = RolloutMetrics(context.metrics.registry)
        keeper = RolloutKeeper(
            context.db,
            self._metrics,
            shadow_tenant=settings.shadow_tenant,
            shadow_sources=settings.shadow_sources,
        )
        self.duties = ((Duty("advance_rollouts", ROLLOUT_S, keeper.turn, lock_timeout_s=_LOCK_TIMEOUT_S),),)

    def clear(self) -> None:
        """Forget how the rollouts stand."""
        self._metrics.clear()


PART = DispatcherPart(_RolloutWork)
