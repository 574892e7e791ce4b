"""What a webhook is told about a pass over a rollout: each weight, the takeover, the end of a revision that was given up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from slipway.analysis.notification import Moment, Notification
from slipway.api.reasons import Reason
from slipway.plan.objects import name_of
from slipway.plan.rollout import Phase, Plan, Rollout
from slipway.snapshot import Manifest


def notices(  # noqa: PLR0913, PLR0917 - all that a pass knows of a rollout
    resource: Manifest, before: Rollout | None, stable: str | None, plan: Plan, status: Mapping[str, Any], now: datetime
) -> tuple[Notification, ...]:
    """Return what happened in this pass.

    Args:
        resource: the ModelDeployment.
        before: the rollout as it was remembered.
        stable: the stable revision before this pass.
        plan: what this pass decided.
        status: the status that it leads to.
        now: the present moment.
    """
    moment, after = _moment(before, stable, plan), plan.rollout
    if moment is None:
        return ()
    row, metadata = status.get("canary") or {}, resource["metadata"]
    is_over = moment == "Promoted"
    return (
        Notification(
            moment=moment,
            time=now,
            namespace=metadata["namespace"],
            name=name_of(resource),
            uid=str(metadata.get("uid")),
            revision=str(plan.stable if after is None or is_over else after.revision),
            stable=stable,
            step=None if after is None or is_over else after.step + 1,
            weight=100 if after is None or is_over else after.weight,
            reason=None if after is None or is_over or after.fault is None else str(after.fault.reason),
            message="" if after is None or is_over or after.fault is None else after.fault.message,
            metrics=() if is_over else tuple(row.get("metrics") or ()),
        ),
    )


def _moment(before: Rollout | None, stable: str | None, plan: Plan) -> Moment | None:
    after = plan.rollout
    if stable is not None and plan.stable != stable:
        return "Promoted"
    return None if after is None else _turn(before, after)


def _turn(before: Rollout | None, after: Rollout) -> Moment | None:
    """Return what a rollout that goes on, or was given up, did."""
    was = before if before is not None and before.revision == after.revision else Rollout(after.revision)
    if after.phase is Phase.ROLLED_BACK:
        is_aborted = after.fault is not None and after.fault.reason is Reason.ROLLOUT_ABORTED
        return None if was.phase is Phase.ROLLED_BACK else "Aborted" if is_aborted else "RolledBack"
    if after.fault is not None:
        return "Paused" if was.fault is None else None
    if after.weight == 0 or (was.weight, was.step) == (after.weight, after.step) or after.phase is Phase.PREPARING:
        return None
    return "Started" if after.step == 0 else "Step" if after.phase is Phase.PROGRESSING else "Paused"
