"""Whatever hosts do, outcomes are right: scenarios at random, held against the rules of the model."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.delivery.model import Mail, Scenario, check, deliver_by
from tests.delivery.model_server import Act, Manners

MAILS = st.builds(
    Mail,
    recipients=st.sampled_from([1, 1, 2, 3]),
    sender=st.sampled_from([0, 0, 0, 1]),
    octets=st.sampled_from([40, 40, 200]),
    kind=st.sampled_from(["memory"] * 6 + ["streamed", "streamed", "failing"]),
    domains=st.sampled_from([1, 1, 2]),
)
LIMITS = [
    "LIMITS RCPTMAX=1",
    "LIMITS RCPTMAX=2 MAILMAX=2",
    "LIMITS MAILMAX=1",
    "LIMITS RCPTDOMAINMAX=1",
]


@st.composite
def manners(draw):
    extensions = ["DSN"]
    if draw(st.sampled_from([True, True, True, False])):
        extensions.append("PIPELINING")
    extensions += draw(st.sampled_from([["CHUNKING"], ["CHUNKING"], []]))
    extensions += draw(st.sampled_from([[], [], ["PRDR"]]))
    extensions += draw(st.sampled_from([[], [], ["PIPECONNECT"]]))  # takes all in a stream
    extensions += draw(st.sampled_from([[], [], [], *[[limit] for limit in LIMITS]]))
    return draw(
        st.builds(
            Manners,
            lmtp=st.sampled_from([False, False, False, True]),
            extensions=st.just(tuple(extensions)),
            prdr=st.booleans(),
            keeps_open=st.booleans(),
            nested=st.booleans(),
            hurried=st.sampled_from([False, False, False, True]),
            lenient=st.booleans(),
            one_by_one=st.booleans(),
            pace=st.sampled_from([65536, 65536, 50, 7]),
            delay=st.sampled_from([0.0, 0.01]),
            capacity=st.sampled_from([float("inf")] * 2 + [100, 30]),
        )
    )


OPTIONS = st.fixed_dictionaries(
    {
        "stream_depth": st.sampled_from([1, 2, 3, 16]),
        "max_connections": st.sampled_from([1, 1, 1, 2, 3]),
    },
    optional={
        "one_flight_octets": st.sampled_from([0, 100]),
        "max_messages_per_connection": st.sampled_from([1, 2, 3]),
        "early_pipelining": st.just(True),
        "max_recipients_per_transaction": st.sampled_from([1, 2]),
    },
)
PLANS = st.dictionaries(st.integers(0, 45), st.sampled_from(Act), max_size=6)
SCENARIOS = st.builds(
    Scenario,
    mails=st.lists(MAILS, min_size=1, max_size=5).map(tuple),
    plan=PLANS,
    manners=manners(),
    options=OPTIONS,
    hosts=st.sampled_from([1, 1, 2]),
    together=st.sampled_from([True, True, True, False]),
    schedule=st.integers(0, 9),
)


@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(SCENARIOS)
def test_outcomes_are_what_really_happened(scenario):
    check(deliver_by(scenario))
