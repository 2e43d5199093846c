"""What the suite's verdicts mean for us, and which of them we accept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

OK = "OK"
# The suite's word for what RFC 6455 leaves open.
INFORMATIONAL = "INFORMATIONAL"
UNIMPLEMENTED = "UNIMPLEMENTED"

_NO_COMPRESSION = "compression (RFC 7692) is not negotiated"
_NO_SUCH_CODE = "RFC 6455 does not say how to answer a close code that it does not define; we answer 1002"

# All that we accept beside OK, NON-STRICT included: a pattern of cases, their verdict, and why.
ACCEPTED = (
    ("7.1.6", INFORMATIONAL, "a peer that closes while it does not read forfeits the answers that wait for it"),
    ("7.13.*", INFORMATIONAL, _NO_SUCH_CODE),
    ("12.*", UNIMPLEMENTED, _NO_COMPRESSION),
    ("13.*", UNIMPLEMENTED, _NO_COMPRESSION),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the suite found in one case.

    Args:
        id: its number, such as ``"6.4.1"``.
        behaviour: the verdict on what was sent.
        closing: the verdict on how the connection ended.
        result: the suite's reason for ``behaviour``.
        closing_result: its reason for ``closing``.
    """

    id: str
    behaviour: str
    closing: str
    result: str
    closing_result: str

    @property
    def accepted_because(self) -> str | None:
        """Why a behaviour that is not OK is accepted; None where it is not."""
        reasons = (why for cases, verdict, why in ACCEPTED if verdict == self.behaviour and fnmatchcase(self.id, cases))
        return next(reasons, None)

    @property
    def passed(self) -> bool:
        """Whether the case is OK or accepted, closing included."""
        if self.closing not in (OK, INFORMATIONAL):
            return False
        return self.behaviour == OK or self.accepted_because is not None

    def __str__(self) -> str:
        if self.passed:
            return f"{self.id} {self.behaviour}: {self.accepted_because or OK}"
        return (
            f"{self.id} NOT ACCEPTED: "
            f"behaviour {self.behaviour} ({self.result}), closing {self.closing} ({self.closing_result})"
        )


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """Yield the totals by verdict, and each case that is not OK; what is not implemented in one line."""
    yield f"{len(cases)} cases"
    yield f"behaviour: {_totals([case.behaviour for case in cases])}"
    yield f"closing: {_totals([case.closing for case in cases])}"
    unimplemented = [case for case in cases if case.passed and case.behaviour == UNIMPLEMENTED]
    yield from (str(case) for case in cases if not case.passed)
    yield from (str(case) for case in cases if case.passed and case.behaviour not in (OK, UNIMPLEMENTED))
    if unimplemented:
        yield f"{unimplemented[0].id} to {unimplemented[-1]}"


def _totals(verdicts: list[str]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).most_common())
