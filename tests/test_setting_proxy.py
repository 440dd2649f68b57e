from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.setting_proxy import Proxy
from engine.settings import Settings, explain

PROXY_ALLOWED = (
    '"socks5://[user:pass@]host[:port]" or "haproxy://host[:port]", perhaps followed by '
    '"?priority=2&weight=3&timeout=5s" (numbers up to 65535): one, or a list'
)


def problems(**values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return [str(problem) for problem in explain(caught.value)]


@pytest.mark.parametrize(
    ("url", "proxy", "text"),
    [
        ("socks5://127.0.0.1", Proxy("socks5", "127.0.0.1", 1080), "socks5://127.0.0.1:1080"),
        ("socks5://h.test:99/", Proxy("socks5", "h.test", 99), "socks5://h.test:99"),
        ("socks5://[2001:db8::1]:9", Proxy("socks5", "2001:db8::1", 9), "socks5://[2001:db8::1]:9"),
        (
            "socks5://me:s3cretW0rd%40@h.test",
            Proxy("socks5", "h.test", 1080, "me", "s3cretW0rd@"),
            "socks5://me:***@h.test:1080",
        ),
        ("haproxy://h.test:5000", Proxy("haproxy", "h.test", 5000), "haproxy://h.test:5000"),
        (
            "socks5://me:s3cretW0rd@h.test:99?priority=2&weight=3",
            Proxy("socks5", "h.test", 99, "me", "s3cretW0rd", priority=2, weight=3),
            "socks5://me:***@h.test:99",
        ),
        (
            "haproxy://[::1]/?timeout=1.5s&priority=0",
            Proxy("haproxy", "::1", 25, priority=0, timeout=1.5),
            "haproxy://[::1]:25",
        ),
        (
            "socks5://h.test?timeout=20",
            Proxy("socks5", "h.test", 1080, timeout=20),
            "socks5://h.test:1080",
        ),
        ("socks5://h.test?", Proxy("socks5", "h.test", 1080), "socks5://h.test:1080"),
    ],
)
def test_proxy_urls_are_read(url: str, proxy: Proxy, text: str):
    settings = Settings.model_validate({"proxy": url})
    assert settings.proxy == (proxy,)
    assert str(proxy) == text
    assert Settings.model_validate({"proxy": [url, url]}).proxy == (proxy, proxy)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://u:s3cretW0rd@h", "a proxy URL of an unknown scheme"),
        ("u:s3cretW0rd@h:1080", "a proxy URL of an unknown scheme"),
        ("socks5://u:s3cretW0rd@h:x", "a proxy URL with a host or port that cannot be read"),
        ("socks5://u:s3cretW0rd@[h", "a proxy URL with a host or port that cannot be read"),
        ("socks5://u:s3cretW0rd@h:70000", "a proxy URL with a host or port that cannot be read"),
        (
            "socks5://u:s3cretW0rd@h:0",
            "a proxy URL with more than a host and a port from 1 to 65535",
        ),
        (
            "socks5://u:s3cretW0rd@h/path",
            "a proxy URL with more than a host and a port from 1 to 65535",
        ),
        ("socks5://u:s3cretW0rd@", "a proxy URL without a proper host"),
        ("socks5://u:s3cretW0rd@-h", "a proxy URL without a proper host"),
        ("socks5://u:s3cretW0rd x@h", "a proxy URL with a space, a control character or < >"),
        ("socks5://u:s3cretW0rd@h\n", "a proxy URL with a space, a control character or < >"),
        ("haproxy://u:s3cretW0rd@h", "a proxy URL with a user, which only socks5 knows"),
        (
            f"socks5://u:{'s3cretW0rd' * 50}@h",
            "a proxy URL with a user or password not of 1 to 255 octets",
        ),
        ("socks5://s3cretW0rd@h", "a proxy URL with a user or password not of 1 to 255 octets"),
        (
            "socks5://u:s3cretW0rd@h#",
            "a proxy URL with more than a host and a port from 1 to 65535",
        ),
        (
            "socks5://u:s3cretW0rd@h?pri=2",
            "a proxy URL with an unknown word behind the question mark",
        ),
        # Here the password has a question mark in it.
        ("socks5://u:12?s3cretW0rd@h", "a proxy URL with an unknown word behind the question mark"),
        ("socks5://u:12?weight=s3cretW0rd@h", "a proxy URL with a priority or weight out of range"),
        *[
            (
                f"socks5://u:s3cretW0rd@h?{choice}",
                "a proxy URL with a priority or weight out of range",
            )
            for choice in ("priority=65536", "priority=-1", "weight=0", "weight=٣", "weight=")
        ],
        *[
            (f"socks5://u:s3cretW0rd@h?{choice}", "a proxy URL with a timeout that is no duration")
            for choice in ("timeout=0", "timeout=", "timeout=5x", "timeout=-1s", "timeout=inf")
        ],
        ("socks5://u:s3cretW0rd@h?weight=1&weight=2", "a proxy URL that says one thing twice"),
    ],
)
def test_a_bad_proxy_url_is_described_and_never_quoted(url: str, what: str):
    assert problems(proxy=url) == [f"proxy: found {what}; allowed {PROXY_ALLOWED}"]
    assert problems(proxy=[url]) == [f"proxy: found {what}; allowed {PROXY_ALLOWED}"]
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"proxy": url})
    assert "s3" not in str(caught.value)


def test_a_proxy_of_another_type_is_not_quoted_either():
    assert problems(proxy={"password": "s3cretW0rd"}) == [
        f"proxy: found a value of type dict; allowed {PROXY_ALLOWED}"
    ]
    assert problems(proxy=[5]) == [
        f"proxy: found an item of type int; allowed {PROXY_ALLOWED}",
    ]


def test_a_proxy_has_a_name_for_people_without_its_login():
    assert Proxy.parse("socks5://me:s3cretW0rd@[::1]:99?weight=2").name == "socks5://[::1]:99"


def test_proxies_may_be_values():
    proxy = Proxy("socks5", "h.test", 1080)
    assert Settings(proxy=(proxy,)).proxy == (proxy,)
    assert Settings.model_validate({"proxy": proxy}).proxy == (proxy,)


@pytest.mark.parametrize("word", ["", "off", "none", False, None])
def test_proxies_can_be_switched_off_by_a_word(word: object):
    assert Settings.model_validate({"proxy": word}).proxy == ()


@given(st.text(max_size=40))
def test_any_text_is_a_proxy_or_a_value_error(text: str):
    for url in (text, f"socks5://{text}"):
        try:
            proxy = Proxy.parse(url)
        except ValueError:
            continue
        assert 1 <= proxy.port <= 65535
