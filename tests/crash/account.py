"""What became of everybody: what was submitted, what arrived and what was logged, held against each other.

Pure; `tests.crash.drill` collects what is looked at here.  What the worker promises:

* who was accepted has the message, or was refused and the sender was told;
* nobody has it more often than once, but for whom the log said `unknown` first, and as often as that;
* the log has one final line for each; another one only where the worker was killed in between: the
  line is written before the store is told, and what was told is told again after a crash.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

#: What every line of the log has.
KEYS = {"time", "message", "recipient", "status", "attempt", "final", "next_attempt"}


@dataclass
class Arrived:
    """What the receiver wrote down.

    Attributes:
        accepted: How often a message was accepted for whom.
        refused: Who was refused.
        damaged: Who got a content that was not what was submitted.
    """

    accepted: Counter = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)

    def read(self, text):
        """Take whole lines of the record."""
        for line in text.splitlines():
            what, recipient = line.split()
            if what == "refused":
                self.refused.add(recipient)
                continue
            if what == "damaged":
                self.damaged.add(recipient)
            self.accepted[recipient] += 1


@dataclass
class Told:
    """What the log of outcomes says.

    Attributes:
        lines: How many lines there are.
        bad: Those that cannot be understood.
        unknown: How often it said of whom that he may have the message.
        finals: Of whom it said that he left the queue: each time when, and how.
    """

    lines: int = 0
    bad: list[str] = field(default_factory=list)
    unknown: Counter = field(default_factory=Counter)
    finals: dict[str, list[tuple[float, str]]] = field(default_factory=dict)

    def read(self, text):
        """Take whole lines of the log."""
        for line in text.splitlines():
            self.lines += 1
            try:
                record = json.loads(line)
                if missing := KEYS - set(record):
                    raise ValueError(f"without {missing}")
                at = datetime.fromisoformat(record["time"]).timestamp()
            except (ValueError, TypeError) as error:
                self.bad.append(f"{line[:200]}: {error}")
                continue
            recipient = record["recipient"]
            self.unknown[recipient] += record["status"] == "unknown"
            if record["final"]:
                self.finals.setdefault(recipient, []).append((at, record["status"]))


@dataclass
class Verdict:
    """The account.

    Attributes:
        counts: Numbers, by what they count.
        violations: What must not be, a line each.
    """

    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def refuse(self, what, whom):
        """Count those of whom something is said that must not be."""
        self.counts[what] = len(whom)
        if whom:
            some = ", ".join(sorted(map(str, whom))[:5])
            self.violations.append(f"{what}: {len(whom)}, {some}")


def judge(offered, accepted, arrived, told, kills):
    """Hold everything against each other.

    Args:
        offered: Every message by its id.
        accepted: The ids of those that were accepted.
        arrived: What the receiver has.
        told: What the log says.
        kills: When something was killed, in seconds since the epoch.
    """
    verdict = Verdict()
    everybody, must, reports, may_report = {}, set(), set(), set()
    for id_, letter in offered.items():
        everybody |= dict.fromkeys(letter.recipients, letter)
        refused = any(recipient.startswith("refused") for recipient in letter.recipients)
        if refused:
            may_report.add(letter.sender)
        if id_ in accepted:
            must.update(letter.recipients)
            if refused:
                reports.add(letter.sender)
    mail = {recipient for recipient in must if not recipient.startswith("refused")}
    have = set(arrived.accepted)
    ended = set(told.finals)

    verdict.counts["recipients accepted"] = len(must)
    verdict.counts["delivered"] = len(mail & have)
    verdict.counts["refused"] = len((must - mail) & arrived.refused)
    verdict.counts["reports delivered"] = len(reports & have)
    verdict.refuse("lost", mail - have)
    verdict.refuse("refused and not asked", must - mail - arrived.refused)
    verdict.refuse("reports lost", reports - have)
    verdict.refuse("damaged", arrived.damaged)
    verdict.refuse("arrived and never submitted", have - set(everybody) - may_report)

    copies = {who: count for who, count in arrived.accepted.items() if count > 1}
    verdict.counts["twice or more"] = len(copies)
    verdict.refuse(
        "twice and not reported unknown",
        {who for who, count in copies.items() if count > 1 + told.unknown[who]},
    )
    verdict.counts["reported unknown"] = len(+told.unknown)

    verdict.counts["log lines"] = told.lines
    verdict.refuse("log lines that cannot be read", told.bad)
    verdict.refuse("without a final line", (must | reports) - ended)
    verdict.refuse("ended otherwise than the log says", _misreported(have, told))
    again, repeated = set(), 0
    for who, finals in told.finals.items():
        for (before, _), (after, _) in pairwise(finals):
            repeated += 1
            if not any(before - 0.01 <= kill <= after for kill in kills):
                again.add(who)
    verdict.counts["told twice around a kill"] = repeated - len(again)
    verdict.refuse("told twice without a kill", again)
    return verdict


def _misreported(have, told):
    """Who has the message and never ended as delivered, or the other way round."""
    return {
        who
        for who, finals in told.finals.items()
        if any(status == "delivered" for _, status in finals) is not (who in have)
    }
