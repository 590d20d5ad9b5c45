"""The status of a message: which there are, which a program may change, and how one is set."""

from collections.abc import Mapping
from typing import Literal

from june.store.transactions import Row, Transaction

Status = Literal["NEW", "PROCESSING", "RESPONDED", "FORWARDED", "SENT", "ERROR", "TIMEOUT"]
"""A received message goes from NEW to PROCESSING, then to RESPONDED or ERROR.

A message to be sent goes from NEW to PROCESSING, then to SENT or ERROR. A failed or interrupted attempt goes
back from PROCESSING to NEW. A message that was passed on to the owner is FORWARDED until the owner answers.
A question that was sent becomes RESPONDED or TIMEOUT.
"""

MAY_CHANGE: Mapping[str, Mapping[Status, tuple[Status, ...]]] = {
    "queued": {
        "NEW": ("PROCESSING", "RESPONDED", "ERROR"),
        "PROCESSING": ("NEW", "RESPONDED", "ERROR"),
        "ERROR": ("NEW",),
    },
    "sent": {"NEW": ("ERROR",), "ERROR": ("NEW",)},
    "asked": {"NEW": ("ERROR",), "ERROR": ("NEW",), "SENT": ("TIMEOUT",)},
}
"""The changes that a program may make by itself; june alone makes all others.

A message is "queued" if programs may claim it, "sent" if a program sent it, "asked" if it is a question
that a program sent.
"""


def changes_allowed(row: Row) -> Mapping[Status, tuple[Status, ...]]:
    """Return which status of a message a program may change, and into which others."""
    if row["direction"] == "in":
        return MAY_CHANGE["queued"] if row["taker"] == "program" else {}
    if row["role"] != "program":
        return {}
    return MAY_CHANGE["asked" if row["is_question"] else "sent"]


def set_status(
    sql: Transaction, message_id: int, status: Status, *, outcome: str = "", error: str = ""
) -> None:
    """Set the status of a message that nobody works on from now on."""
    sql.execute(
        "UPDATE messages SET status = :status, outcome = :outcome, error = :error, claimed_by = '',"
        " lease_until_s = NULL, updated_at_s = :now_s WHERE id = :id",
        id=message_id,
        status=status,
        outcome=outcome,
        error=error,
        now_s=sql.now_s,
    )
