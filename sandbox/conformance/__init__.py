"""The public suite that judges any backend: conformance (what a session means) and abuse (what it must hold).

`await check("fork")` or `solostream sandbox check fork`. Each case is one promise with precise assertions; a promise
that the backend does not claim (`Sandbox.claims`) is skipped with the reason. After each case the suite looks at the
host: the next session works, a bystander session kept its state, no process and no file of the case is left; at the
end no child, container or descriptor of the backend is.

The abuse is bounded: every bomb counts, every loop has a deadline, and signals to everyone are sent only from where a
pid namespace, or another uid, contains them. A backend that holds nothing fails; it does not take the machine along.
"""

from solostream.sandbox.conformance import (
    bombs,
    escapes,
    floods,
    forks,
    processes,
    programs,
    protocol,
    stuck,
    tampering,
    trespass,
)
from solostream.sandbox.conformance.case import CASES, Arena, Case, Skip, case, expect
from solostream.sandbox.conformance.suite import LIMITS, CaseVerdict, Report, check

__all__ = ["CASES", "LIMITS", "Arena", "Case", "CaseVerdict", "Report", "Skip", "case", "check", "expect"]
__all__ += [
    "bombs",
    "escapes",
    "floods",
    "forks",
    "processes",
    "programs",
    "protocol",
    "stuck",
    "tampering",
    "trespass",
]  # the cases, by topic
