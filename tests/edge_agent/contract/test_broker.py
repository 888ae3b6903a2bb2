"""The broker's address and password, which MQTT version is tried next, and how long to wait between attempts."""

import pytest

from edge_agent.contract.broker import Backoff, BrokerConfig, BrokerError, Versions

URLS = ("mqtt://joe:Secret-1@box:1883", "mqtts://Secret-1@box", "joe:Secret-1@box", "wss://box/mqtt?password=Secret-1")


@pytest.mark.parametrize(
    ("host", "plain", "address"),
    [
        ("[::1]", "::1", "[::1]:1883"),
        ("::1", "::1", "[::1]:1883"),
        ("[fe80::1%br0]", "fe80::1%br0", "[fe80::1%br0]:1883"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:1883"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.1:1883"),
        ("mqtt_1.example.", "mqtt_1.example.", "mqtt_1.example.:1883"),
        ("bücher.example", "bücher.example", "bücher.example:1883"),
    ],
)
def test_each_form_of_a_host_is_accepted(host, plain, address):
    for config in (BrokerConfig(host=host), BrokerConfig().at(host)):
        assert (config.host, config.address) == (plain, address)
    assert BrokerConfig().at(address) == BrokerConfig(host=host)


def test_an_address_on_the_command_line_keeps_the_configured_port_unless_it_has_one():
    config = BrokerConfig(port=8883)
    assert [config.at(text).port for text in ("[::1]", "::1", "box", "[::1]:1", "box:2")] == [8883, 8883, 8883, 1, 2]


@pytest.mark.parametrize(
    "host",
    [
        *("[::1", "::1]", "[]", "[box]", "[192.0.2.1]", "[::1]:1883", "box:1883", "::1::2", "192.0.2.300", "1.2.3.4.5"),
        *("a..b", ".", "a" * 64, "my box", " box", "box\n", "box/mqtt", "box,other", "b\x00x"),
    ],
)
def test_a_host_that_cannot_be_is_refused_by_its_key(host):
    with pytest.raises(BrokerError, match=r"^host: .* is neither the name nor the address of a host"):
        BrokerConfig(host=host)


@pytest.mark.parametrize("address", ["", ":1883", "box:", "[::1]:", "[::1]x", "box:1:", "box:１"])
def test_an_address_that_cannot_be_is_refused(address):
    with pytest.raises(BrokerError):
        BrokerConfig().at(address)


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_by_name_and_its_password_is_not_repeated(url):
    for key, make in (("host", lambda: BrokerConfig(host=url)), ("broker", lambda: BrokerConfig().at(url))):
        with pytest.raises(BrokerError, match=f"^{key}: a URL is not accepted") as refused:
            make()
        assert "Secret" not in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_the_password(tmp_path):
    file = tmp_path / "secret"
    file.write_bytes(b"\xef\xbb\xbfs\xc3\xa9same\r\nsecond line\r\n")
    config = BrokerConfig(username="gw-1", password_file=file)
    assert config.password() == "sésame"
    file.write_bytes("sésame".encode("utf-16"))
    with pytest.raises(BrokerError, match=r"password_file .*secret: is not UTF-8"):
        config.password()


def test_versions_are_tried_in_turn_until_one_is_known_to_be_wrong():
    auto = Versions("auto")
    tried = []
    for event in (auto.hung_up, auto.hung_up, auto.lost, auto.hung_up, auto.lost, auto.refused, auto.lost):
        tried.append(auto.next())
        event()
    assert [*tried, auto.next()] == [5, 4, 5, 5, 4, 5, 4, 4]
    fixed = Versions(5)
    fixed.hung_up()
    assert fixed.next() == 5


def test_waits_double_up_to_the_bound_and_begin_again_after_a_success():
    backoff = Backoff(0.5, 60.0)
    waits = [backoff.next() for _ in range(20)]
    assert all(0.25 * 2**i <= wait <= 0.5 * 2**i for i, wait in enumerate(waits[:7]))
    assert all(30 <= wait <= 60 for wait in waits[7:])
    backoff.reset()
    assert backoff.next() <= 0.5
