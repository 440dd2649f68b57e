"""A TLS report as its receivers take it: JSON, compressed, in a mail; and where they want it.

The report is that of RFC 8460 §4.4, the mail that of §5.3, the record that of §3.  Knows no I/O.
"""

from __future__ import annotations

import gzip
import json
import re
from base64 import encodebytes
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final

from engine.report.report_mail import Field, Part, text_part, write_fields, write_multipart
from engine.smtp.address import parse_mailbox
from engine.smtp.errors import AddressSyntaxError
from engine.txt_fields import read_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.report.tlsrpt import DailyReport, FailureDetail, PolicyResult

GZIP_TYPE: Final = "application/tlsrpt+gzip"
#: Of how many places a receiver names a report goes to.
MAX_PLACES: Final = 5

# RFC 8460 §3: what a URI may hold, and the blanks around commas.
_RECORD_VALUE: Final = re.compile(r"[\x21-\x3a\x3c-\x7e \t]+")
_UNIQUE: Final = re.compile(r"[A-Za-z0-9]{1,32}")


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who makes the reports.

    Attributes:
        organization: What the organization is called.
        contact: A mailbox to write to about reports; they are sent from it.
        unique: Letters and digits that tell this engine from others of the same domain.

    Raises:
        ValueError: The mailbox is none, or `unique` is something else.
    """

    organization: str
    contact: str
    unique: str = "1"

    def __post_init__(self) -> None:
        parse_mailbox(self.contact)
        if not (self.contact.isascii() and _UNIQUE.fullmatch(self.unique)):
            raise ValueError(
                f"contact {self.contact[:80]!r}, unique {self.unique[:40]!r}: allowed are a mailbox "
                "in US-ASCII and 1 to 32 letters and digits"
            )

    @property
    def domain(self) -> str:
        """The domain reports are submitted by (RFC 8460 §5.3)."""
        return self.contact.rpartition("@")[2].lower()


# ---- the report ---------------------------------------------------------------------------------


def report_id(report: DailyReport, reporter: Reporter) -> str:
    """Return what names a report: the same however often it is sent, so that copies are known."""
    return f"{report.day:%Y%m%d}.{report.receiver}.{reporter.unique}@{reporter.domain}"


def to_json(report: DailyReport, reporter: Reporter) -> bytes:
    """Return the body of a report (RFC 8460 §4.4)."""
    body = {
        "organization-name": reporter.organization,
        "date-range": {
            "start-datetime": f"{report.day:%Y-%m-%d}T00:00:00Z",
            "end-datetime": f"{report.day:%Y-%m-%d}T23:59:59Z",
        },
        "contact-info": reporter.contact,
        "report-id": report_id(report, reporter),
        "policies": [_policy(result) for result in report.results],
    }
    return json.dumps(body, ensure_ascii=False).encode()


def _policy(result: PolicyResult) -> dict[str, Any]:
    policy = result.policy
    shown: dict[str, Any] = {"policy-type": policy.kind, "policy-domain": policy.domain}
    if policy.strings:
        shown["policy-string"] = list(policy.strings)
    if policy.mx_hosts:
        shown["mx-host"] = list(policy.mx_hosts)
    entry: dict[str, Any] = {
        "policy": shown,
        "summary": {
            "total-successful-session-count": result.successes,
            "total-failure-session-count": result.failures,
        },
    }
    if result.details:
        entry["failure-details"] = [_detail(detail, count) for detail, count in result.details]
    return entry


def _detail(detail: FailureDetail, count: int) -> dict[str, Any]:
    entry = {
        "result-type": detail.result_type,
        "sending-mta-ip": detail.sending_ip,
        "receiving-mx-hostname": detail.mx_host,
        "receiving-ip": detail.receiving_ip,
        "failed-session-count": count,
        "failure-reason-code": detail.reason or None,
    }
    return {key: value for key, value in entry.items() if value is not None}


def to_gzip(report: DailyReport, reporter: Reporter) -> bytes:
    """Return a report compressed, always to the same octets (RFC 8460 §5.2)."""
    return gzip.compress(to_json(report, reporter), mtime=0)


def file_name(report: DailyReport, reporter: Reporter) -> str:
    """Return the name of a compressed report (RFC 8460 §5.1)."""
    start = datetime(report.day.year, report.day.month, report.day.day, tzinfo=UTC)
    end = start + timedelta(days=1, seconds=-1)
    times = f"{int(start.timestamp())}!{int(end.timestamp())}"
    return f"{reporter.domain}!{report.receiver}!{times}!{reporter.unique}.json.gz"


def to_mail(report: DailyReport, reporter: Reporter, recipient: str, at: float) -> bytes:
    """Return a report as a message with CRLF line ends (RFC 8460 §5.3); it is not signed yet.

    Args:
        report: The report.
        reporter: Who makes it.
        recipient: The mailbox it goes to.
        at: When it is sent, in seconds since the epoch.
    """
    identity = report_id(report, reporter)
    subject = f"Report Domain: {report.receiver} Submitter: {reporter.domain}"
    fields = (
        Field("From", reporter.contact),
        Field("To", recipient),
        Field("Date", format_datetime(datetime.fromtimestamp(at, UTC))),
        Field("Message-ID", f"<{identity}>"),
        Field("Subject", f"{subject} Report-ID: <{identity}>"),
        Field("TLS-Report-Domain", report.receiver),
        Field("TLS-Report-Submitter", reporter.domain),
        # RFC 8460 §5.3: such mail is delivered whatever is wrong with TLS; RFC 8689 §3 says so to
        # all.
        Field("TLS-Required", "No"),
        # RFC 3834 §5: nobody's vacation program should answer.
        Field("Auto-Submitted", "auto-generated"),
    )
    text = f"This is an aggregate TLS report from {reporter.domain} about {report.receiver}.\n"
    file = Part(
        (
            Field("Content-Type", GZIP_TYPE),
            Field("Content-Transfer-Encoding", "base64"),
            Field("Content-Disposition", f'attachment; filename="{file_name(report, reporter)}"'),
        ),
        encodebytes(to_gzip(report, reporter)).replace(b"\n", b"\r\n"),
    )
    # Two copies of a report are the same octets, but for the date.
    return write_fields(fields) + write_multipart("tlsrpt", (text_part(text), file), identity)


# ---- where reports go ---------------------------------------------------------------------------


def read_record(texts: Iterable[str]) -> tuple[str, ...]:
    """Return where a receiver wants reports: `mailto:` and `https:` URIs, `MAX_PLACES` at most.

    Args:
        texts: The TXT records of `_smtp._tls.` and the domain.

    Returns:
        The URIs; none where not exactly one valid record is there (RFC 8460 §3).
    """
    fields = read_fields(texts, "v=TLSRPTv1", _RECORD_VALUE) or {}
    places = (place.strip(" \t") for place in fields.get("rua", "").split(","))
    known = [place for place in places if place.lower().startswith(("mailto:", "https://"))]
    return tuple(dict.fromkeys(known))[:MAX_PLACES]


def mailbox_of(uri: str) -> str | None:
    """Return the mailbox of a `mailto:` URI, `None` where it has not exactly one that is usable."""
    from urllib.parse import unquote

    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "mailto":
        return None
    # RFC 6068 §2: header fields may follow; nobody else's are put into our mail.
    address = unquote(rest.partition("?")[0], errors="replace")
    try:
        parse_mailbox(address)
    except AddressSyntaxError:
        return None
    return address if address.isascii() and address.isprintable() else None
