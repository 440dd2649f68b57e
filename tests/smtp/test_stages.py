from __future__ import annotations

import pytest

from engine.smtp.stages import Stage

# The public contract, section 2; the order is that of a delivery.
SETUP = ["route", "policy", "connect", "proxy", "greeting", "hello", "starttls", "tls", "auth"]
CONTRACT = [*SETUP, "mail", "rcpt", "data", "content", "final"]


def test_the_stages_are_those_of_the_contract_in_order():
    assert [stage.value for stage in Stage] == CONTRACT


@pytest.mark.parametrize("name", CONTRACT)
def test_everything_before_mail_is_setup_and_nothing_after(name):
    assert Stage(name).is_setup is (name in SETUP)
