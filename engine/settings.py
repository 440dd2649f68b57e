"""The settings: one flat set of names, with their defaults.  Knows no I/O.

The configuration file, `--set` and programs that embed the engine all make the same `Settings`.
Not here: what a value may be (`engine.setting_types`, `engine.setting_proxy`), which settings hold
for a host (`engine.paths`), files and their line numbers (`engine.worker.config`), and what a
setting does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from engine.choices import (
    AddressFamily,
    DaneMode,
    Downconvert,
    FastOpenMode,
    MtaStsMode,
    ProtocolName,
    TlsLevel,
    TlsVersion,
)
from engine.setting_proxy import Proxies  # noqa: TC001 - read when the class is made
from engine.setting_types import (
    Auth,
    AuthTable,
    CipherList,
    Count,
    DomainName,
    Dscp,
    FileName,
    Flag,
    FlagOrAuto,
    HeloName,
    Interfaces,
    Limit,
    Mailbox,
    Port,
    Seconds,
    StreamDepth,
    Whole,
    one_of,
    refusal,
)
from engine.showing import show_key, suggest
from engine.units import MINUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Settings whose values are never shown in an error, a log line or a list of settings.
SECRET: Final = frozenset({"auth", "proxy"})

# TOML has no null: an empty text takes back what the defaults set.
_OR_EMPTY: Final = BeforeValidator(lambda value: None if value == "" else value)


class Settings(BaseModel):
    """Everything that can be set for a host; frozen, checked when made.

    Times are floats of seconds and may be given as text (`"5m"`), of which type checkers know
    nothing.  "Exim" below is the reference client, whose defaults hold unless a reason is given.

    Raises:
        ValidationError: From the constructor (it is a `ValueError`); `explain` turns it into
            problems.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Argument of EHLO and HELO, a domain name or an address literal (RFC 5321 §4.1.1.1).
    #: `None`: our address of the connection, as a literal, which every host can hold against what it
    #: sees (RFC 5321 §4.1.4).
    helo_name: HeloName = None
    #: Local IP addresses to send from; the first of the peer's family is taken.
    #: Empty: the operating system chooses, as in Exim.  From Python also a function of the host's
    #: name and the message, which returns a list.
    interface: Interfaces = ()
    #: Whether a host is skipped when `interface` has no address of its family.  Exim goes on.
    interface_strict: Flag = False
    #: TCP port, a number or the name of a service; a port that the route gives wins.
    #: `None`: by protocol, smtp 25, lmtp 24, smtps 465, as in Exim.
    port: Port = None
    #: What is spoken: SMTP, LMTP (RFC 2033 §4), or SMTP over TLS from the first octet (RFC 8314 §3.3).
    protocol: Annotated[ProtocolName, one_of(ProtocolName)] = "smtp"

    #: Seconds until a connection stands, proxy included.  Exim 5m; Postfix 30s.
    connect_timeout: Seconds = 5 * MINUTES
    #: Seconds for the greeting.  RFC 5321 §4.5.3.2.1 and Exim: 5m.
    greeting_timeout: Seconds = 5 * MINUTES
    #: Seconds for the reply to any command up to DATA.  RFC 5321 §4.5.3.2.2 and Exim: 5m.
    command_timeout: Seconds = 5 * MINUTES
    #: Seconds for one block of content to be taken.  Exim 5m; RFC 5321 §4.5.3.2.5: 3m or more.
    data_timeout: Seconds = 5 * MINUTES
    #: Seconds for the reply to the content.  RFC 5321 §4.5.3.2.6 and Exim: 10m; less makes copies.
    final_timeout: Seconds = 10 * MINUTES
    #: Seconds for the reply to QUIT.  Exim waits 1s; nothing depends on it.
    quit_timeout: Seconds = 1.0
    #: Seconds an open connection without work is kept.  KumoMTA 5s, Postfix 2s.
    idle_timeout: Seconds = 5.0

    #: SO_KEEPALIVE on each connection.  Exim: on.
    keepalive: Flag = True
    #: Seconds of silence before the first probe, in whole seconds, rounded up; Linux takes up to
    #: 32767.  `None`, as for the next three: the system's, as in Exim.
    keepalive_idle: Annotated[Seconds | None, _OR_EMPTY] = None
    #: Seconds between two probes; the same.
    keepalive_interval: Annotated[Seconds | None, _OR_EMPTY] = None
    #: Probes without an answer that end the connection; Linux takes up to 127.
    keepalive_count: Annotated[Limit | None, _OR_EMPTY] = None
    #: TCP_USER_TIMEOUT: seconds that sent octets may stay unacknowledged (RFC 5482 §1).
    user_timeout: Annotated[Seconds | None, _OR_EMPTY] = None
    #: Traffic class: a name of `DSCP_NAMES` or a code point from 0 to 0x3F (RFC 2474 §3), or `None`.
    dscp: Dscp = None
    #: TCP Fast Open (RFC 7413 §3): `connect` sends no data with the SYN, `commands` may.  Exim: on.
    fast_open: Annotated[FastOpenMode, one_of(FastOpenMode)] = "connect"
    #: Proxies to connect through, chosen by priority and weight (`Proxy`); empty: none, as in Exim.
    proxy: Proxies = ()

    #: EHLO; `False` is HELO only.  Exim: on.
    esmtp: Flag = True
    #: PIPELINING where offered (RFC 2920 §3.1).  Exim: on.
    pipelining: Flag = True
    #: Commands before the greeting, to servers that are known to take them.  Exim: off.
    early_pipelining: Flag = False
    #: BDAT where CHUNKING is offered (RFC 3030 §2).  Exim: on.
    chunking: Flag = True
    #: A reply for each recipient after the content, where PRDR is offered.  Exim: on.
    prdr: Flag = True
    #: QUIT behind the last content, without waiting for its reply.  `auto`: where the server is known
    #: to take it; others may lose their reply (Haraka 3.3).  Exim: on, anywhere.
    quit_pipelining: FlagOrAuto = "auto"
    #: Mail transactions in flight on one connection; 1 is lockstep, as in Exim.  `auto`: more
    #: where the server is known to take it.
    stream_depth: StreamDepth = "auto"
    #: Octets of content up to which the envelope and the first chunk leave in one flight.
    #: Above it the replies to the envelope are collected first (RFC 3030 §2).
    one_flight_octets: Count = 65536
    #: Octets added to the size in MAIL SIZE= (RFC 1870 §6); negative: SIZE= is not sent.  Exim 1024.
    size_addition: Whole = 1024
    #: Octets of the longest line taken, without CRLF; 0: any.  RFC 5321 §4.5.3.1.6 and Exim: 998.
    max_line_length: Count = 998
    #: Whether one transaction may have recipients of several domains.  Exim: yes.
    multi_domain: Flag = True
    #: When domains in envelopes become A-labels (RFC 6531 §3.2): `auto` is where the peer has no
    #: SMTPUTF8, as in Exim.
    utf8_downconvert: Annotated[Downconvert, one_of(Downconvert)] = "auto"
    #: IGNOREQUOTA on RCPT over LMTP, where offered.  Exim: off.
    lmtp_ignore_quota: Flag = False

    #: STARTTLS (RFC 3207 §4): `require` is encrypted with any certificate, `verify` certificate and
    #: name too.  Exim: opportunistic (RFC 7435 §3).
    tls: Annotated[TlsLevel, one_of(TlsLevel)] = "opportunistic"
    #: Whether opportunistic TLS that fails is followed by sending in clear.  Exim: yes.
    tls_fallback_to_clear: Flag = True
    #: File of trusted certificates, PEM; `None`: those of the system.
    tls_ca_file: FileName = None
    #: File with our certificate and its chain, PEM.
    tls_certificate: FileName = None
    #: File with the key of our certificate, PEM.
    tls_private_key: FileName = None
    #: Server name to ask for (RFC 6066 §3); `None`: the name of the host.
    tls_sni: DomainName = None
    #: Cipher list for TLS 1.2, in OpenSSL's notation; `None`: the library's.
    tls_ciphers: CipherList = None
    #: Oldest version accepted.  RFC 9325 §3.1.1 rules out all before 1.2.
    tls_min_version: Annotated[TlsVersion, one_of(TlsVersion)] = "1.2"
    #: Whether TLS sessions are resumed.  Exim: no; here it saves a round trip.
    tls_resumption: Flag = True
    #: TLSA records (RFC 7672 §2.2): `require` defers where there are none.  Exim: try.
    dane: Annotated[DaneMode, one_of(DaneMode)] = "try"
    #: MTA-STS policies (RFC 8461 §3).  Exim has none.
    mta_sts: Annotated[MtaStsMode, one_of(MtaStsMode)] = "on"

    #: Credentials for AUTH, or `None`.
    auth: AuthTable = None
    #: Whether a host is given up when AUTH does not succeed.  Exim: no.
    auth_required: Flag = False
    #: Whether a mechanism that shows the password may be used without TLS (RFC 4954 §4).
    auth_in_clear: Flag = False
    #: Mailbox for MAIL AUTH= (RFC 4954 §5), or `None`.
    authenticated_sender: Mailbox = None

    #: Recipients in one transaction; 0: no limit.  RFC 5321 §4.5.3.1.8 and Exim: 100.
    max_recipients_per_transaction: Count = 100
    #: Transactions on one connection; 0: no limit.  Exim 500.
    max_messages_per_connection: Count = 500
    #: Connections to one site at a time.  Postfix 20, KumoMTA 32.
    max_connections: Limit = 20
    #: Addresses tried in one attempt, those with a retry time ahead not counted.  Exim 5.
    max_hosts_tried: Limit = 5
    #: Addresses tried in one attempt, whatever they answer.  Exim 50.
    max_hosts_tried_hard: Limit = 50
    #: Whether a host gets one connection at a time.  Exim: no.
    serialize: Flag = False
    #: Which addresses of a host are used, and which first.
    address_family: Annotated[AddressFamily, one_of(AddressFamily)] = "any"

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            raise _retold(error) from None


# ---- problems -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a set of settings.

    Attributes:
        key: The setting, with the key inside its table where there is one: `auth.username`.
        found: What was found; never a secret.
        allowed: What is allowed.
    """

    key: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.key}: found {self.found}; allowed {self.allowed}"


def _retold(error: ValidationError) -> ValidationError:
    """Have an error say of each setting what was found and what is allowed, and nothing else."""
    details: list[InitErrorDetails] = []
    problems = explain(error)
    for problem, detail in zip(problems, error.errors(include_input=False), strict=True):
        told = refusal(problem.found, problem.allowed)
        details.append(InitErrorDetails(type=told, loc=detail["loc"], input=None))
    return ValidationError.from_exception_data(error.title, details, hide_input=True)


def explain(error: ValidationError) -> list[Problem]:
    """Turn the error of `Settings(...)` into problems; no secret is in them."""
    return [
        _explain_one(detail["type"], detail["loc"], detail.get("ctx", {"allowed": detail["msg"]}))
        for detail in error.errors(include_url=False, include_input=False)
    ]


def _explain_one(kind: str, place: tuple[int | str, ...], facts: Mapping[str, object]) -> Problem:
    key = ".".join(show_key(str(part)) for part in place)
    if kind == "extra_forbidden":
        fields = Settings.model_fields if len(place) == 1 else Auth.model_fields
        return Problem(key, "an unknown name", suggest(str(place[-1]), fields))
    if kind == "missing":
        return Problem(key, "nothing", "a value: it is needed")
    # Our own validators say both; the rest is misuse from Python, such as a key that is no text.
    return Problem(key, str(facts.get("found", "an unusable value")), str(facts.get("allowed")))


def contradictions(settings: Settings) -> list[Problem]:
    """Find settings of which each is fine and which cannot hold together.

    To be asked of settings that hold for a host, with the rules for its path applied: nothing here
    depends on what was set explicitly.
    """
    problems = []
    if settings.tls == "off":
        on = '"off", or tls on'
        if settings.dane == "require":
            problems.append(Problem("dane", '"require" with tls = "off"', f'"try", {on}'))
        if settings.protocol == "smtps":
            # RFC 8314 §3.3: this is TLS from the first octet.
            allowed = '"smtp" or "lmtp", or tls on'
            problems.append(Problem("protocol", '"smtps" with tls = "off"', allowed))
    if settings.tls_private_key is not None and settings.tls_certificate is None:
        found = "a key without tls_certificate"
        problems.append(Problem("tls_private_key", found, "both, or neither"))
    return problems
