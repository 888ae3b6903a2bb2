"""The package built for arm64, on Debian 12 and 13 under qemu, gives the same rows, scores and alerts as here.

``make test-arm`` runs it; `make test` does not, since it fetches some 100 MB of Debian once.
"""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.capture.features import ROW_META, Extractor, Rows
from edge_agent.capture.sources import open_file
from edge_agent.contract import bundle as bundles
from edge_agent.contract.scaling import row_error
from edge_agent.detection.runtime import TOLERANCE, Model
from tests.arm.root import Arm, prepare
from tests.broker import Mosquitto, needs_mosquitto, wait_until
from tests.conftest import Home
from tests.edge_agent.capture.test_features import assert_as_published, assert_as_twin, data, needs_data
from tests.reference import frames as craft
from tests.reference.frames import START_NS, Spec
from tools.debian import BOOKWORM, TRIXIE, Release, Unavailable

ROWS = """
import pickle, sys
from pathlib import Path
import numpy as np
from edge_agent.capture.sources import open_file
from edge_agent.capture.features import Extractor
source, settings, out = sys.argv[1:]
extractor = Extractor(**pickle.loads(bytes.fromhex(settings)))
if source.endswith(".pickle"):
    rows = extractor.push_frames(*pickle.loads(Path(source).read_bytes()))
else:
    with open_file(source) as opened:
        rows = extractor.push(opened, 20_000)
np.savez(out, values=rows.values, meta=rows.meta.view("u1"))
"""

OUTPUTS = """
import sys
import numpy as np
from edge_agent.contract import bundle as bundles
from edge_agent.detection.runtime import Model, selftest
bundle = bundles.load(sys.argv[1])
selftest(bundle)
inputs = np.load(sys.argv[2])
np.savez(sys.argv[3], rebuilt=Model(bundle.autoencoder)(inputs), classes=Model(bundle.classifier)(inputs))
"""


@pytest.fixture(scope="session", params=[BOOKWORM, TRIXIE], ids=lambda release: release.name)
def arm(request: pytest.FixtureRequest) -> Arm:
    release: Release = request.param
    try:
        made = prepare(release)
    except Unavailable as reason:
        pytest.fail(str(reason), pytrace=False)
    machine, python = made.python("import platform; print(platform.machine(), platform.python_version())").split()
    assert machine == "aarch64"
    assert python.startswith(release.python)
    return made


class ArmExtractor:
    """An `Extractor` on the emulated machine, a new one for each push."""

    def __init__(self, arm: Arm, folder: Path, **settings: Any) -> None:
        self._arm, self._folder, self._settings = arm, folder, settings

    def push_frames(self, frames: list[tuple[int, int, bytes]], linktype: int = 1) -> Rows:
        file = self._folder / "frames.pickle"
        file.write_bytes(pickle.dumps((frames, linktype)))
        return self.push_file(file)

    def push_file(self, file: Path) -> Rows:
        out = self._folder / "rows.npz"
        self._arm.python(ROWS, str(file), pickle.dumps(self._settings).hex(), str(out))
        with np.load(out) as stored:
            return Rows(stored["values"], stored["meta"].view(ROW_META))


@needs_data
def test_rows_of_a_real_capture_are_those_of_the_published_extractor(arm: Arm, tmp_path: Path) -> None:
    extractor = ArmExtractor(arm, tmp_path, jitter="compat", float_time=True, dtype="f8")
    assert_as_published(extractor.push_file(data("kitsune/packets_20000.pcap")).values)


@pytest.mark.parametrize("linktype", [craft.ETHERNET, craft.RAW, craft.SLL, craft.SLL2])
def test_kernel_agrees_with_its_twin_on_every_kind_of_frame(arm: Arm, tmp_path: Path, linktype: int) -> None:
    tags = craft.TAGS if linktype == craft.ETHERNET else ("",)
    specs = [
        *(Spec(n, "", e, t) for n in ("ipv4", "ipv6") for e in craft.EXTENSIONS for t in craft.TRANSPORTS),
        *(Spec(network, tag) for network in craft.NETWORKS for tag in tags),
    ]
    frames = [(START_NS + i * i * 1_000_003, *craft.craft(spec, linktype)) for i, spec in enumerate(specs)]
    assert_as_twin(frames, linktype, extractor=ArmExtractor(arm, tmp_path, max_streams=64, dtype="f8"))


def test_rows_are_those_of_this_machine_bit_for_bit(arm: Arm, tmp_path: Path, attack_capture: Path) -> None:
    """Full tables and their evictions are included, so that a model made here can be used there."""
    got = ArmExtractor(arm, tmp_path, max_streams=4096, seed=1).push_file(attack_capture)
    here = Extractor(4096, seed=1)
    with open_file(attack_capture) as source:
        expected = here.push(source, 20_000)
    assert sum(value for key, value in here.counts().items() if key.startswith("evicted")) > 0
    assert got.meta.tobytes() == expected.meta.tobytes()
    assert got.values.tobytes() == expected.values.tobytes()


def test_int8_models_compute_what_they_compute_here(
    arm: Arm, tmp_path: Path, home: Home, attack_capture: Path, record_property: Any
) -> None:
    """The self-test passes; of a morning with attacks, at most 0.1 % of decisions and 1 % of classes differ."""
    bundle = bundles.load(home.bundle)
    assert bundle.manifest.variant == "int8"
    assert bundle.classifier is not None
    with open_file(attack_capture) as source:
        z = bundle.scaler.z(Extractor(seed=1).push(source, 20_000).values)
    inputs = bundle.scaler.network_input(z)
    np.save(tmp_path / "inputs.npy", inputs)
    arm.python(OUTPUTS, str(home.bundle), str(tmp_path / "inputs.npy"), str(tmp_path / "outputs.npz"))
    with np.load(tmp_path / "outputs.npz") as there:
        scores, expected = row_error(z, there["rebuilt"]), row_error(z, Model(bundle.autoencoder)(inputs))
        classes, expected_classes = there["classes"], Model(bundle.classifier)(inputs)
    allowed, limit = TOLERANCE["int8"], bundle.manifest.decision.full.limit
    off = np.abs(np.sqrt(scores) - np.sqrt(expected))
    print(
        f"\n{arm.release.name}: {len(z)} rows, √score differs by at most {off.max():.2g}, class probabilities by "
        f"{np.abs(classes - expected_classes).max():.2g}"
    )
    assert (off <= allowed.rmse + allowed.rmse_share * np.sqrt(expected)).all()
    assert (scores > limit).any()
    assert ((scores > limit) != (expected > limit)).mean() <= 1e-3
    assert (classes.argmax(axis=1) != expected_classes.argmax(axis=1)).mean() <= 1e-2


@pytest.fixture(scope="session")
def replayed_here(home: Home, attack_capture: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "replay",
        "--json",
        str(attack_capture),
        "--bundle",
        str(home.bundle),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count('"state":"new"') == 2
    return done.stdout


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as started:
        yield started


@needs_mosquitto
def test_replay_gives_the_alerts_of_this_machine_and_delivers_them(
    arm: Arm, tmp_path: Path, home: Home, attack_capture: Path, replayed_here: str, broker: Mosquitto
) -> None:
    """The alerts are equal byte for byte, as printed and as delivered through outbox and broker."""
    received: list[str] = []
    listener = mqtt.Client(CallbackAPIVersion.VERSION2)
    listener.on_connect = lambda client, *_: client.subscribe("botwatch/v1/gw/+/alert", qos=1)
    listener.on_message = lambda _client, _data, message: received.append(message.payload.decode())
    listener.connect("127.0.0.1", broker.port)
    listener.loop_start()
    try:
        arguments = ["replay", "--json", str(attack_capture), "--bundle", str(home.bundle), "--wait", "60"]
        arguments += ["--broker", broker.address, "--outbox", str(tmp_path / "outbox.sqlite")]
        done = arm.run("-m", "edge_agent", *arguments)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: len(received) >= len(replayed_here.splitlines()))
    finally:
        listener.disconnect()
        listener.loop_stop()
    assert done.stdout == replayed_here
    assert sorted(received) == sorted(replayed_here.splitlines())
