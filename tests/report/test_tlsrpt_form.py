"""Reports, mails and records against RFC 8460, a schema, and an independent reader."""

from __future__ import annotations

import email
import email.policy
import gzip
import json
import os
import subprocess
from datetime import date
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report.tlsrpt import DailyReport, FailureDetail, PolicyResult
from engine.report.tlsrpt_form import (
    Reporter,
    file_name,
    mailbox_of,
    read_record,
    report_id,
    to_gzip,
    to_json,
    to_mail,
)
from engine.security import ReportedPolicy
from tests.servers.provision import give_up

ROOT = Path(__file__).parents[2]
#: An environment with the extra `oracles`.
ORACLES = Path(os.environ.get("ENGINE_TEST_ORACLES", ROOT / ".venv-oracles"))

REPORTER = Reporter("Sender, Inc.", "TLS-reports@Sender.test", "7f3a")
DAY = date(2026, 11, 28)
STS = ReportedPolicy(
    "sts",
    "a.test",
    ("version: STSv1", "mode: testing", "mx: *.mail.a.test", "mx: b.test", "max_age: 86400"),
    ("*.mail.a.test", "b.test"),
    receiver="a.test",
)
TLSA = ReportedPolicy("tlsa", "mx.a.test", ("3 1 1 ab", "2 0 1 cd"), receiver="a.test")
NONE = ReportedPolicy("no-policy-found", "a.test", receiver="a.test")
EXPIRED = FailureDetail("certificate-expired", "2001:db8::1", "mx1.mail.a.test", "192.0.2.1")
UNFETCHED = FailureDetail("sts-policy-fetch-error", reason="no \N{SNOWMAN} answer")
REPORT = DailyReport(
    "a.test",
    DAY,
    (
        PolicyResult(STS, 5326, 303, ((EXPIRED, 300), (UNFETCHED, 3))),
        PolicyResult(TLSA, 7),
        PolicyResult(NONE, 0, 0),
    ),
)

RESULT_TYPES = [
    "starttls-not-supported",
    "certificate-host-mismatch",
    "certificate-expired",
    "certificate-not-trusted",
    "validation-failure",
    "tlsa-invalid",
    "dnssec-invalid",
    "dane-required",
    "sts-policy-fetch-error",
    "sts-policy-invalid",
    "sts-webpki-invalid",
]
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": TEXT}
ADDRESS = {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}], "type": "string"}
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}


def closed(required, **properties):
    return {
        "type": "object",
        "properties": {name.replace("_", "-"): schema for name, schema in properties.items()},
        "required": required.split(),
        "additionalProperties": False,
    }


#: What RFC 8460 §4.4 says about each field.
SCHEMA = closed(
    "organization-name date-range contact-info report-id policies",
    organization_name=TEXT,
    date_range=closed("start-datetime end-datetime", start_datetime=MOMENT, end_datetime=MOMENT),
    contact_info={"type": "string", "pattern": "^[^@ ]+@[^@ ]+$"},
    report_id=TEXT,
    policies={
        "type": "array",
        "items": closed(
            "policy summary",
            policy=closed(
                "policy-type policy-domain",
                policy_type={"enum": ["tlsa", "sts", "no-policy-found"]},
                policy_string=TEXTS,
                policy_domain=TEXT,
                mx_host=TEXTS,
            ),
            summary=closed(
                "total-successful-session-count total-failure-session-count",
                total_successful_session_count=COUNT,
                total_failure_session_count=COUNT,
            ),
            failure_details={
                "type": "array",
                "items": closed(
                    "result-type failed-session-count",
                    result_type={"enum": RESULT_TYPES},
                    sending_mta_ip=ADDRESS,
                    receiving_mx_hostname=TEXT,
                    receiving_mx_helo=TEXT,
                    receiving_ip=ADDRESS,
                    failed_session_count=COUNT,
                    additional_information=TEXT,
                    failure_reason_code=TEXT,
                ),
            },
        ),
    },
)


def check(body):
    jsonschema.validate(body, SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_a_report_is_what_the_rfc_says():
    body = json.loads(to_json(REPORT, REPORTER))

    check(body)
    assert body == {
        "organization-name": "Sender, Inc.",
        "date-range": {
            "start-datetime": "2026-11-28T00:00:00Z",
            "end-datetime": "2026-11-28T23:59:59Z",
        },
        "contact-info": "TLS-reports@Sender.test",
        "report-id": "20261128.a.test.7f3a@sender.test",
        "policies": [
            {
                "policy": {
                    "policy-type": "sts",
                    "policy-domain": "a.test",
                    "policy-string": [
                        "version: STSv1",
                        "mode: testing",
                        "mx: *.mail.a.test",
                        "mx: b.test",
                        "max_age: 86400",
                    ],
                    "mx-host": ["*.mail.a.test", "b.test"],
                },
                "summary": {
                    "total-successful-session-count": 5326,
                    "total-failure-session-count": 303,
                },
                "failure-details": [
                    {
                        "result-type": "certificate-expired",
                        "sending-mta-ip": "2001:db8::1",
                        "receiving-mx-hostname": "mx1.mail.a.test",
                        "receiving-ip": "192.0.2.1",
                        "failed-session-count": 300,
                    },
                    {
                        "result-type": "sts-policy-fetch-error",
                        "failed-session-count": 3,
                        "failure-reason-code": "no \N{SNOWMAN} answer",
                    },
                ],
            },
            {
                "policy": {
                    "policy-type": "tlsa",
                    "policy-domain": "mx.a.test",
                    "policy-string": ["3 1 1 ab", "2 0 1 cd"],
                },
                "summary": {
                    "total-successful-session-count": 7,
                    "total-failure-session-count": 0,
                },
            },
            {
                "policy": {"policy-type": "no-policy-found", "policy-domain": "a.test"},
                "summary": {
                    "total-successful-session-count": 0,
                    "total-failure-session-count": 0,
                },
            },
        ],
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {**json.loads(to_json(REPORT, REPORTER)), "more": 1},
        {**json.loads(to_json(REPORT, REPORTER)), "policies": [{}]},
        {**json.loads(to_json(REPORT, REPORTER)), "contact-info": "nobody"},
    ],
)
def test_the_schema_refuses_what_is_no_report(body):
    with pytest.raises(jsonschema.ValidationError):
        check(body)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
NAMES = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){1,3}", fullmatch=True)
POLICIES = st.builds(
    ReportedPolicy,
    st.sampled_from(["tlsa", "sts", "no-policy-found"]),
    NAMES,
    st.lists(WORDS, max_size=3).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
)
DETAILS = st.builds(
    FailureDetail,
    st.sampled_from(RESULT_TYPES),
    st.none() | st.ip_addresses().map(str),
    st.none() | NAMES,
    st.none() | st.ip_addresses().map(str),
    st.just("") | WORDS,
)
REPORTS = st.builds(
    DailyReport,
    NAMES,
    st.dates(date(2020, 1, 1), date(2099, 12, 31)),
    st.lists(
        st.builds(
            PolicyResult,
            POLICIES,
            st.integers(0, 10**9),
            st.integers(0, 10**9),
            st.lists(st.tuples(DETAILS, st.integers(1, 10**9)), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)


@given(REPORTS)
def test_any_report_keeps_to_the_schema(report):
    check(json.loads(to_json(report, REPORTER)))


def test_a_compressed_report_is_the_same_octets_each_time():
    octets = to_gzip(REPORT, REPORTER)

    assert gzip.decompress(octets) == to_json(REPORT, REPORTER)
    assert octets == to_gzip(REPORT, REPORTER)
    assert octets[:2] == b"\x1f\x8b"


def test_the_file_is_named_as_the_rfc_recommends():
    assert file_name(REPORT, REPORTER) == "sender.test!a.test!1795824000!1795910399!7f3a.json.gz"


@pytest.mark.parametrize(
    ("contact", "unique"),
    [
        ("nobody", "1"),
        ("a@b.test\r\nBcc: c@d.test", "1"),
        ("J\xf6rg@b.test", "1"),
        ("a@b.test", ""),
        ("a@b.test", "a-b"),
        ("a@b.test", "x" * 33),
    ],
)
def test_who_makes_reports_has_a_mailbox_and_a_plain_word(contact, unique):
    with pytest.raises(ValueError, match=r"allowed|@"):
        Reporter("Sender", contact, unique)


class TestMail:
    OCTETS = to_mail(REPORT, REPORTER, "reports@a.test", 1_795_910_400.0)
    MAIL = email.message_from_bytes(OCTETS, policy=email.policy.default)

    def test_it_is_a_report_of_two_parts(self):
        assert self.MAIL.get_content_type() == "multipart/report"
        assert self.MAIL["Content-Type"].params["report-type"] == "tlsrpt"
        text, report = self.MAIL.iter_parts()
        assert text.get_content_type() == "text/plain"
        assert text["Content-Transfer-Encoding"] == "7bit"
        assert "sender.test about a.test" in text.get_content()
        assert report.get_content_type() == "application/tlsrpt+gzip"
        assert report["Content-Transfer-Encoding"] == "base64"
        assert report.get_filename() == file_name(REPORT, REPORTER)
        assert report.get_content() == to_gzip(REPORT, REPORTER)

    def test_its_header_says_what_it_is(self):
        identity = report_id(REPORT, REPORTER)
        assert self.MAIL["From"] == "TLS-reports@Sender.test"
        assert self.MAIL["To"] == "reports@a.test"
        assert self.MAIL["Date"] == "Sun, 29 Nov 2026 00:00:00 +0000"
        assert self.MAIL["Message-ID"] == f"<{identity}>"
        assert self.MAIL["TLS-Report-Domain"] == "a.test"
        assert self.MAIL["TLS-Report-Submitter"] == "sender.test"
        assert self.MAIL["Subject"] == (
            f"Report Domain: a.test Submitter: sender.test Report-ID: <{identity}>"
        )
        assert self.MAIL["TLS-Required"] == "No"
        assert self.MAIL["Auto-Submitted"] == "auto-generated"
        assert self.MAIL["MIME-Version"] == "1.0"

    def test_it_can_be_sent_as_it_is(self):
        assert self.OCTETS.isascii()
        assert self.OCTETS.replace(b"\r\n", b"").count(b"\n") == 0
        assert max(map(len, self.OCTETS.split(b"\r\n"))) <= 78

    def test_two_copies_are_the_same(self):
        assert to_mail(REPORT, REPORTER, "reports@a.test", 1_795_910_400.0) == self.OCTETS

    def test_long_names_are_folded_and_not_encoded(self):
        name = ".".join(["a" * 60] * 4)
        report = DailyReport(name, DAY, REPORT.results)

        octets = to_mail(report, REPORTER, "reports@a.test", 0.0)

        mail = email.message_from_bytes(octets, policy=email.policy.default)
        assert mail["TLS-Report-Domain"].strip() == name
        assert mail["Subject"].startswith(f"Report Domain: {name} Submitter: sender.test Report-ID")
        assert b"=?" not in octets
        assert max(map(len, octets.split(b"\r\n"))) <= 998


class TestRecord:
    """RFC 8460 §3."""

    @pytest.mark.parametrize(
        ("texts", "places"),
        [
            (["v=TLSRPTv1;rua=mailto:reports@example.com"], ["mailto:reports@example.com"]),
            (["v=TLSRPTv1; rua=https://r.example.com/v1;"], ["https://r.example.com/v1"]),
            (
                ["v=TLSRPTv1 ; rua=mailto:a@b.test , https://c.test/?x=y%2C"],
                ["mailto:a@b.test", "https://c.test/?x=y%2C"],
            ),
            (["other", "v=TLSRPTv1; new=1; rua=mailto:a@b.test"], ["mailto:a@b.test"]),
            (["v=TLSRPTv1; rua=ftp://x/,mailto:a@b.test,http://x/"], ["mailto:a@b.test"]),
            (["v=TLSRPTv1; rua=mailto:a@b.test; rua=mailto:c@d.test"], ["mailto:a@b.test"]),
            (["v=TLSRPTv1; rua=mailto:a@b.test,mailto:a@b.test"], ["mailto:a@b.test"]),
            (
                ["v=TLSRPTv1; rua=" + ",".join(f"mailto:a{n}@b.test" for n in range(9))],
                [f"mailto:a{n}@b.test" for n in range(5)],
            ),
        ],
    )
    def test_a_record_says_where_reports_go(self, texts, places):
        assert list(read_record(texts)) == places

    @pytest.mark.parametrize(
        "texts",
        [
            [],
            ["v=spf1 -all"],
            ["v=TLSRPTv1"],
            ["v=TLSRPTv1;"],
            ["v=TLSRPTv1; rua="],
            ["v=TLSRPTv1; rua=ftp://x/"],
            ["v=TLSRPTv2; rua=mailto:a@b.test"],
            ["rua=mailto:a@b.test; v=TLSRPTv1"],
            ["v=TLSRPTv1; junk; rua=mailto:a@b.test"],
            ["v=TLSRPTv1; rua=mailto:a@b.test", "v=TLSRPTv1; rua=mailto:c@d.test"],
            ["v=TLSRPTv1; rua=mailto:a\r\nb@c.test"],
        ],
    )
    def test_anything_else_says_nowhere(self, texts):
        assert read_record(texts) == ()

    @pytest.mark.parametrize(
        ("uri", "mailbox"),
        [
            ("mailto:a@b.test", "a@b.test"),
            ("MAILTO:a@b.test", "a@b.test"),
            ("mailto:a%2Bb@b.test", "a+b@b.test"),
            ("mailto:a@b.test?subject=x", "a@b.test"),
            ("mailto:", None),
            ("mailto:a", None),
            ("mailto:a@b.test%0D%0ABcc:c@d.test", None),
            ("mailto:a@b.test%2Cc@d.test", None),
            ("mailto:%ff@b.test", None),
            ("https://a@b.test/", None),
        ],
    )
    def test_a_uri_names_one_mailbox(self, uri, mailbox):
        assert mailbox_of(uri) == mailbox

    @given(st.lists(st.text(max_size=80), max_size=3))
    def test_any_records_are_read(self, texts):
        assert all(place.isprintable() for place in read_record(texts))


READ = """\
import json, sys, warnings
warnings.simplefilter("ignore")
import parsedmarc
mail = parsedmarc.parse_report_email(sys.stdin.buffer.read(), offline=True)
print(json.dumps([mail["report_type"], mail["report"]]))
"""


def test_an_independent_reader_understands_the_mail():
    python = ORACLES / "bin" / "python"
    if not python.exists():
        give_up("no .venv-oracles: make it, and install '.[oracles]' there")

    done = subprocess.run(
        [python, "-c", READ], input=TestMail.OCTETS, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr.decode()
    kind, report = json.loads(done.stdout)
    assert kind == "smtp_tls"
    assert (report["organization_name"], report["contact_info"]) == (
        "Sender, Inc.",
        "TLS-reports@Sender.test",
    )
    assert report["report_id"] == report_id(REPORT, REPORTER)
    assert [
        (p["policy_type"], p["successful_session_count"], p["failed_session_count"])
        for p in report["policies"]
    ] == [("sts", 5326, 303), ("tlsa", 7, 0), ("no-policy-found", 0, 0)]
    (expired, unfetched) = report["policies"][0]["failure_details"]
    assert (expired["result_type"], expired["failed_session_count"]) == ("certificate-expired", 300)
    assert unfetched["failure_reason_code"] == "no \N{SNOWMAN} answer"
