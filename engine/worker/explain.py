"""The command `explain`: what would happen to mail for an address, and why; nothing is sent.

Called by the command line with options that were understood.  Finding out is
`engine.worker.explain_gather`'s, looking at hosts `engine.worker.explain_probe`'s; what it comes to is
put into facts by `engine.worker.explain_describe` and on the terminal by `engine.worker.explain_show`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import trio

from engine.engine import make_resolver, make_router
from engine.message import Recipient
from engine.net.connector import Connector
from engine.queue.hints import MemoryHints
from engine.route import Route
from engine.routing.nameservers import is_any_trusted
from engine.security import TlsDemand
from engine.smtp.address import Mailbox
from engine.smtp.errors import AddressSyntaxError
from engine.worker.exits import Exit
from engine.worker.explain_describe import Describer
from engine.worker.explain_facts import Result, as_json
from engine.worker.explain_gather import Scout
from engine.worker.explain_probe import Prober
from engine.worker.explain_show import render
from engine.worker.given import open_state, read_config
from engine.worker.hosts import read_hosts
from engine.worker.output import open_output
from engine.worker.screen import print_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.hints import Hints
    from engine.route import Candidate
    from engine.worker.config import Config
    from engine.worker.explain_facts import Explanation
    from engine.worker.explain_gather import Finding, Lead
    from engine.worker.explain_probe import Sight
    from engine.worker.output import Output
    from engine.worker.send import Routes

#: Domains that are looked into at the same time, and hosts of one that are looked at.
_DOMAINS_AT_ONCE: Final = 8
_HOSTS_AT_ONCE: Final = 5
# ASCII only: that escapes control characters, and any locale can print it.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True)

_EXITS: Final = {
    Result.TRIED: Exit.DELIVERED,
    Result.DEFERRED: Exit.DEFERRED,
    Result.FORBIDDEN: Exit.FAILED,
    Result.FAILED: Exit.FAILED,
}
#: Where several apply, the first of these.
_PRECEDENCE: Final = (Exit.DATA, Exit.FAILED, Exit.DEFERRED)


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """The options of `explain`, as `engine.worker.cli` describes them.

    Attributes:
        addresses: Mailboxes, or domains alone.
        hosts: Where mail would be sent instead of by MX.
        config: The configuration file; `None`: there is none.
        sets: `KEY=VALUE` over the configuration's defaults.
        state: The file that keeps hints; `None`: nothing is known of hosts.
        as_json: One JSON object an address, in place of text.
        probes: Whether the hosts are looked at.
        stdout: Descriptor for results.
        stderr: Descriptor for everything else.
    """

    addresses: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    config: str | None = None
    sets: tuple[str, ...] = ()
    state: str | None = None
    as_json: bool = False
    probes: bool = False
    stdout: int = 1
    stderr: int = 2


def explain(options: ExplainOptions) -> int:
    """Run `explain` and return its exit status.

    Raises:
        ValueError: One of `hosts` is no host.
    """
    routes = read_hosts(options.hosts)
    config = read_config(options.config, options.sets)
    if isinstance(config, Exit):
        return config
    if options.state is not None and not Path(options.state).exists():
        # Who only asks makes no file.
        print(f"{options.state}: no such file; nothing is known of hosts", file=sys.stderr)
        options = replace(options, state=None)
    return trio.run(explain_all, options, config, routes or config.routes)


async def explain_all(options: ExplainOptions, config: Config, routes: Routes) -> Exit:
    """Run `explain` with a configuration that was read.

    Args:
        options: All but those of the configuration are used.
        config: Settings, name servers and who we are.
        routes: Static routes, first match wins.
    """
    async with (
        open_output(options.stderr) as stderr,
        open_output(options.stdout) as stdout,
        open_state(options.state) as hints,
    ):
        is_validating = await trio.to_thread.run_sync(
            is_any_trusted, config.name_servers, config.trusted
        )
        explainer = Explainer(
            config, routes, hints, probes=options.probes, is_validating=is_validating
        )
        return await _explain_each(options, explainer, stdout, stderr)


async def _explain_each(
    options: ExplainOptions, explainer: Explainer, stdout: Output, stderr: Output
) -> Exit:
    exits: set[Exit] = set()
    async with trio.open_nursery() as nursery:
        jobs: dict[str, _Job] = {}
        orders: list[tuple[str, _Job]] = []
        for address in options.addresses:
            try:
                domain = read_domain(address)
            except AddressSyntaxError as error:
                stderr.put(f"{error}\n")
                exits.add(Exit.DATA)
                continue
            if domain not in jobs:
                jobs[domain] = _Job(domain)
                nursery.start_soon(jobs[domain].run, explainer)
            orders.append((address, jobs[domain]))
        for address, job in orders:
            await job.is_done.wait()
            assert job.known is not None
            explanation = explainer.describe(address, job.known)
            exits.add(_EXITS[explanation.result])
            if options.as_json:
                stdout.put(_ENCODER.encode(as_json(explanation)) + "\n")
            else:
                print_to(stdout.put, options.stdout, render(explanation))
            await stdout.room()
            if stdout.broken.is_set():
                nursery.cancel_scope.cancel()
    if stdout.broken.is_set():
        exits.add(Exit.DEFERRED)  # nobody heard it, as for `send`
    return next((each for each in _PRECEDENCE if each in exits), Exit.DELIVERED)


def read_domain(address: str) -> str:
    """Return the domain that is routed for a mailbox, or for a domain alone.

    Raises:
        AddressSyntaxError: It is neither; the text names it and says what is allowed.
    """
    if "@" in address:
        return Recipient.parse(address).mailbox.routing_domain
    try:
        return Mailbox("postmaster", address).routing_domain
    except AddressSyntaxError as error:
        raise AddressSyntaxError(str(error).replace("postmaster@", "", 1)) from None


class _Job:
    """Finding out about one domain.

    Attributes:
        is_done: Set at the end.
        known: What was found out.
    """

    def __init__(self, domain: str) -> None:
        self.is_done = trio.Event()
        self.known: Known | None = None
        self._domain = domain

    async def run(self, explainer: Explainer) -> None:
        self.known = await explainer.find(self._domain)
        self.is_done.set()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a domain.

    Attributes:
        finding: What was found out.
        sights: What was seen of its hosts; `None`: nobody looked.
    """

    finding: Finding
    sights: Mapping[Candidate, Sight] | None = None


class Explainer:
    """Explains what would become of mail."""

    def __init__(
        self,
        config: Config,
        routes: Routes,
        hints: Hints | None,
        *,
        probes: bool,
        is_validating: bool,
    ) -> None:
        """Make the parts that an engine would have.

        Args:
            config: Settings, name servers and who we are.
            routes: Static routes.
            hints: What was learned of hosts; `None`: nothing.
            probes: Whether hosts are looked at.
            is_validating: Whether a name server is trusted to validate with DNSSEC.
        """
        hints = hints if hints is not None else MemoryHints()
        rng = Random()  # noqa: S311 - spreads load, guards nothing
        resolver = make_resolver(config.name_servers, config.dns_timeout, config.trusted)
        router = make_router(routes, resolver, config.own_addresses, config.own_names)
        self._scout = Scout(resolver, router, config.table, hints, rng)
        self._describer = Describer(config.table, config.sources, is_validating=is_validating)
        self._prober = Prober(Connector(hints=hints, rng=rng)) if probes else None
        self._domains = trio.CapacityLimiter(_DOMAINS_AT_ONCE)

    async def find(self, domain: str) -> Known:
        """Find out about a domain."""
        async with self._domains:
            finding = await self._scout.find(domain)
            return Known(finding, await self._look(finding))

    def describe(self, address: str, known: Known) -> Explanation:
        """Return what would become of mail for an address of a domain."""
        return self._describer.describe(address, known.finding, known.sights)

    async def _look(self, finding: Finding) -> Mapping[Candidate, Sight] | None:
        prober, route = self._prober, finding.survey.verdict
        if prober is None or not isinstance(route, Route):
            return None
        policies = dict(finding.policies)
        sights: dict[Candidate, Sight] = {}
        hosts = trio.CapacityLimiter(_HOSTS_AT_ONCE)

        async def look(lead: Lead) -> None:
            found = policies.get(lead.owner or "")
            async with hosts:
                policy = None if found is None else found.policy
                sights[lead.candidate] = await prober.look(lead, route, policy)

        async with trio.open_nursery() as nursery:
            for lead in finding.leads:
                if isinstance(lead.verdict, TlsDemand) and not lead.barred:
                    nursery.start_soon(look, lead)
        return sights
