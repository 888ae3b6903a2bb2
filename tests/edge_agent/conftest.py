"""What the agent's tests of the line to a broker share."""

from importlib.resources import files

import pytest

from edge_agent.delivery.outbox import Outbox
from edge_agent.state import State
from tests.broker import Mosquitto
from tests.line import Listener, make_certificates


@pytest.fixture
def outbox(tmp_path):
    return Outbox(State(tmp_path / "state.sqlite"))


@pytest.fixture
def listening():
    open_ones = []

    def listen(broker, **options):
        open_ones.append(Listener(broker, **options))
        return open_ones[-1]

    yield listen
    for listener in open_ones:
        listener.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A broker with the configuration and the ACL that we ship, and the certificates it wants."""
    folder = tmp_path_factory.mktemp("site")
    make_certificates(folder)
    text = files("configs").joinpath("mosquitto.conf").read_text()
    (folder / "mosquitto.acl").write_text(files("configs").joinpath("mosquitto.acl").read_text())
    text = text.replace("/etc/botwatch/pki/", f"{folder}/").replace("/etc/botwatch/", f"{folder}/")
    text = text.replace("/var/lib/mosquitto/", f"{folder}/")
    with Mosquitto(folder, config=text) as broker:
        yield broker
