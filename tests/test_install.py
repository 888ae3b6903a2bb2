"""The installer: it writes what it is given, refuses what the agent would refuse, and may be run again."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from edge_agent.config import AgentConfig
from edge_agent.contract import bundle as bundles
from edge_agent.contract import settings
from tests.conftest import Home
from tests.test_systemd import UNIT, UNITS, setting

SHIPPED = UNITS.parent / "configs" / "agent.yaml"
CONFIG = "etc/botwatch/agent.yaml"


def install(root: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """Run the installer for an image."""
    command = ["sh", str(UNITS / "install.sh"), "--root", str(root), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink())


def installed(root: Path, *words: object) -> AgentConfig:
    """Run the installer, which must succeed, and return the configuration that the agent then reads."""
    done = install(root, *words)
    assert done.returncode == 0, done.stderr
    return settings.load(AgentConfig, root / CONFIG)


@pytest.mark.parametrize(
    ("library", "newer"),
    [
        ("x86_64-linux-gnu/systemd/libsystemd-shared-252.so", False),
        ("aarch64-linux-gnu/systemd/libsystemd-shared-257.9-1~deb13u1.so", True),
        ("systemd/libsystemd-shared-254.so", True),
        ("nothing", False),
    ],
)
def test_the_drop_in_is_added_only_where_systemd_knows_it(tmp_path: Path, library: str, newer: bool) -> None:
    file = tmp_path / "usr" / "lib" / library
    file.parent.mkdir(parents=True)
    file.touch()
    done = install(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (f"etc/systemd/system/{UNIT}.d/restart.conf" in files(tmp_path)) == newer
    assert {CONFIG, f"etc/systemd/system/{UNIT}", "usr/local/bin/botwatch"} <= set(files(tmp_path))
    assert (tmp_path / "etc/systemd/system" / UNIT).read_text() == (UNITS / UNIT).read_text()
    assert f"{tmp_path}/usr/lib/botwatch/bin/botwatch does not exist" in done.stderr


def test_each_flag_is_written_and_every_file_is_named(tmp_path: Path, home: Home) -> None:
    flags = ("--gateway", "gw-7", "--bundle", home.bundle, "--broker", "broker.lan:8883")
    done = install(tmp_path, *flags, "--interface", "br0", "--interface", "on")
    assert done.returncode == 0, done.stderr
    named = {line.split()[1].rstrip(",") for line in done.stdout.splitlines()}
    assert {path for name in files(tmp_path) for path in (tmp_path / name, (tmp_path / name).parent)} & {
        Path(name) for name in named
    } == {Path(name) for name in named} - {tmp_path / "etc/botwatch/credentials"}
    config = settings.load(AgentConfig, tmp_path / CONFIG)
    assert (config.gateway, config.broker.address) == ("gw-7", "broker.lan:8883")
    assert config.capture.interfaces == ("br0", "on")
    assert config.bundle == Path("/etc/botwatch/bundle")
    assert bundles.load(tmp_path / "etc/botwatch/bundle").sha256 == bundles.load(home.bundle).sha256
    assert stat.S_IMODE((tmp_path / "etc/botwatch/credentials").stat().st_mode) == 0o700
    assert (tmp_path / "usr/local/bin/botwatch").readlink() == Path("/usr/lib/botwatch/bin/botwatch")


def test_the_service_of_any_user_can_read_what_is_installed_whatever_the_umask_was(tmp_path: Path, home: Home) -> None:
    """A bundle that is private where it was made, and root's umask of 077."""
    private = shutil.copytree(home.bundle, tmp_path / "private one")
    for path in (*private.iterdir(), private):
        path.chmod(0o700 if path.is_dir() else 0o600)
    root = tmp_path / "root"
    root.mkdir()
    script = f"umask 077; exec sh {UNITS / 'install.sh'} --root {root} --bundle '{private}'"
    subprocess.run(["sh", "-c", script], check=True, capture_output=True, timeout=60)
    for path in (root / "etc").rglob("*"):
        if path.name != "credentials":
            assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    (root / "etc/botwatch/bundle").chmod(0o700)
    assert install(root, "--bundle", private).stdout == ""
    assert stat.S_IMODE((root / "etc/botwatch/bundle").stat().st_mode) == 0o755


def test_to_install_again_changes_nothing_and_only_given_keys_of_a_configuration_are_touched(
    tmp_path: Path, home: Home
) -> None:
    library = tmp_path / "usr/lib/systemd/libsystemd-shared-257.so"
    library.parent.mkdir(parents=True)
    library.touch()
    flags = ("--gateway", "gw-7", "--bundle", home.bundle, "--broker", "[::1]:1884", "--interface", "eth0")
    install(tmp_path, *flags)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "etc").rglob("*")}
    for again in (flags, ()):
        assert install(tmp_path, *again).stdout == ""
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "etc").rglob("*")} == times
    config = tmp_path / CONFIG
    config.write_text("# mine\ngateway: gw-7 # ours\n")
    library.rename(library.with_name("libsystemd-shared-252.so"))
    (tmp_path / "etc/systemd/system" / UNIT).write_text("[Service]\n")
    done = install(tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["wrote", "removed"]
    assert config.read_text() == "# mine\ngateway: gw-7 # ours\n"
    install(tmp_path, "--gateway", "gw-8")
    assert config.read_text() == '# mine\ngateway: "gw-8"  # ours\n'


def test_the_installed_configuration_is_the_shipped_one_but_for_absolute_paths_and_the_id(tmp_path: Path) -> None:
    """The same files for the service and for a command that is typed in any folder."""
    config, shipped = installed(tmp_path), settings.load(AgentConfig, SHIPPED)
    folder = Path("/var/lib") / setting("StateDirectory")
    assert config.outbox.path == folder / shipped.outbox.path
    assert shipped.evidence.path
    assert config.evidence.path == folder / shipped.evidence.path
    assert config.bundle is None
    assert config.gateway == "auto"
    mine, theirs = (path.read_text().splitlines() for path in (tmp_path / CONFIG, SHIPPED))
    assert len(mine) == len(theirs)
    assert sum(a != b for a, b in zip(mine, theirs, strict=True)) == 2


def test_a_new_configuration_names_the_bundle_that_is_there(tmp_path: Path, home: Home) -> None:
    """It was installed before and the configuration was deleted since: the built-in one does not take its place."""
    install(tmp_path, "--bundle", home.bundle)
    (tmp_path / CONFIG).unlink()
    assert installed(tmp_path).bundle == Path("/etc/botwatch/bundle")


KEYS = ("--gateway", "gw-7", "--broker", "10.0.0.1:8883", "--interface", "br0", "--interface", "wlan0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        "gateway: gw-1\ncapture:\n  interfaces: [a, b] # two\n  filter: 'not # a comment'\nbroker:\n  host: x\n",
        "broker:\n    port: 1\n    username: 'gw # 1' # c\ncapture:\n    interfaces:\n    # first\n    - a\n\n    - b\n"
        "    filter: x\n",
        "capture:\n  interfaces: [\n    a, # the first\n    b\n  ]\n  snaplen: 128\nsite: x\n",
        "capture: {}\nbroker: null # none\nnames:\n  gateway: x\n",
        '---\n\'gateway\' : "gw # 1"\n"capture":\n  snaplen: 128\n  # the end\n\nsite: home\n',
        "site: home\r\ngateway: gw-1 # ours\r\nbroker:\r\n  host: x\r\n",
        "\ufeffgateway: gw-1\nnames: {host: x}\n",
        "capture:\n  # interfaces: [a]\n  snaplen: 128\nbroker:\n\n  # host: y\n  inflight: 5",
        "capture: {interfaces: [a, b], filter: 'not, # port'} # mine\n"
        'broker: {host: x, port: 1, username: "a, b: \\" }"}\n',
        'broker: {"host": x}\r\nsite: x # c\r\ncapture: { snaplen: 128, }\r\n',
        "broker : { username: u , 'port' : 5 , ca_file: {a: [b, c]}, }   # {c}\n",
        "outbox:\n  path: /x\nbroker:\n  host: >-\n    folded\n  client_id: x\n",
    ],
)
def test_of_any_configuration_with_a_key_a_line_only_the_given_keys_change(tmp_path: Path, text: str) -> None:
    file = tmp_path / CONFIG
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode())
    expected = yaml.safe_load(text) or {}
    expected["gateway"] = "gw-7"
    for section, keys in (
        ("capture", {"interfaces": ["br0", "wlan0"]}),
        ("broker", {"host": "10.0.0.1", "port": 8883}),
    ):
        expected[section] = (expected.get(section) or {}) | keys
    done = install(tmp_path, *KEYS)
    assert done.returncode == 0, done.stderr
    result = file.read_bytes().decode()
    assert yaml.safe_load(result) == expected
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            assert line in result.splitlines()
    assert install(tmp_path, *KEYS).stdout == ""


@pytest.mark.parametrize(
    "text",
    [
        "broker: {host: x,\n  port: 1}\n",
        "{gateway: x}\n",
        "broker: {host: 'x}\n",
        "broker: &b\n  host: x\n",
        "...\n",
        "\tx: 1\n",
    ],
)
def test_a_configuration_that_cannot_be_edited_is_refused_before_anything_is_written(tmp_path: Path, text: str) -> None:
    file = tmp_path / CONFIG
    file.parent.mkdir(parents=True)
    file.write_text(text)
    done = install(tmp_path, *KEYS)
    assert done.returncode == 2
    assert f"{file} cannot be edited: line 1" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(tmp_path) == [CONFIG]
    assert file.read_text() == text


VALUES_OF_YAML = st.recursive(
    st.none() | st.booleans() | st.integers(0, 99) | st.text("ab #:,'\"\\{}[]-?|>&*!%@`é", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["host", "gateway", "é"]), inner),
    max_leaves=6,
)
SECTION = st.dictionaries(st.sampled_from(["host", "port", "interfaces", "filter"]), VALUES_OF_YAML)


@given(
    tree=st.fixed_dictionaries(
        {}, optional={"site": VALUES_OF_YAML, "capture": SECTION, "gateway": VALUES_OF_YAML, "broker": SECTION}
    ),
    braces=st.sampled_from([None, False]),
    width=st.sampled_from([40, 1000]),
    indent=st.sampled_from([2, 4]),
)
@settings_of_hypothesis(max_examples=100, deadline=None)
def test_whatever_yaml_a_program_writes_is_edited_rightly_or_refused(
    tree: dict[str, object], braces: bool | None, width: int, indent: int
) -> None:
    text = yaml.safe_dump(
        tree, default_flow_style=braces, width=width, indent=indent, allow_unicode=True, sort_keys=False
    )
    for section, key, value in (
        ("", "gateway", "gw-7"),
        ("capture", "interfaces", ["br0", "on"]),
        ("broker", "port", 1),
    ):
        done = subprocess.run(
            ["awk", "-f", str(UNITS / "set-key.awk")],
            input=text.encode(),
            env={"PATH": os.environ["PATH"], "SECTION": section, "KEY": key, "VALUE": json.dumps(value)},
            capture_output=True,
            check=False,
        )
        if done.returncode:
            assert done.returncode == 3
            assert done.stdout.startswith(b"line ")
            continue
        expected = yaml.safe_load(text)
        if section:
            expected[section] = (expected.get(section) or {}) | {key: value}
        else:
            expected[key] = value
        assert yaml.safe_load(done.stdout.decode()) == expected


def test_a_section_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Of two, the agent would take the second."""
    file = tmp_path / CONFIG
    file.parent.mkdir(parents=True)
    file.write_text("broker:\n  host: x\nbroker:\n  host: y\n")
    done = install(tmp_path, *KEYS)
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be edited: line 3: the section broker is there twice\n")


HOSTS = ("localhost", "broker.lan", "192.0.2.1", "192.0.2.1:1", "broker.lan:65535", "mqtt_1", "box:8883", "on")
ADDRESSES = (
    *("::1", "[::1]", "[::1]:8883", "fe80::1%br0", "[fe80::1%br0]:1", "2001:db8::1", "::ffff:192.0.2.1", "::", "1::"),
    *("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:192.0.2.1", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::3:4:5:6:7:8"),
)
NO_HOSTS = (
    *("", ":1883", "box:", "box:0", "box:65536", "box:99999999999999999999", "box:x", "a b", "box/mqtt", "a..b", ".x"),
    *("mqtt://box", "mqtt://joe:Secret@box", "joe:Secret@box", "1.2.3.300", "1:2", "1.2.3.4.5", "x\n", "x\x1b[31m"),
)
NO_ADDRESSES = (
    *(
        "[::1",
        "::1]",
        "[]",
        "[::1]:",
        "[::1]x",
        "[box]",
        ":::",
        "::1::2",
        "box:1:",
        "12345::",
        "[::1]:0",
        "::g",
        ":1::2",
    ),
    *("1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:192.0.2.1", "::1.2.3", "1::2:", "1:2:3:4:5:6:7:8::", "::1%"),
)
VALUES = {
    "gateway": ("auto", "a", "gw-001", "007", "1e3", "x" * 63),
    "interface": ("br0", "eth0.100", "wlan0_ap", "123", "x" * 15, "wlp2s0f1-x"),
    "broker": (*HOSTS, *ADDRESSES),
}
WRONG = {
    "gateway": ("", "GW", "gw 1", "-a", "a-", "x" * 64, "gw_1", "gw.1", "gw\n1", "bücher"),
    "interface": ("", "a/b", "x" * 16, "a b", "br0\n", 'a"b'),
    "broker": (*NO_HOSTS, *NO_ADDRESSES),
}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in VALUES.items() for value in values])
def test_a_value_that_is_taken_is_what_the_agent_reads(tmp_path: Path, flag: str, value: str) -> None:
    config = installed(tmp_path, f"--{flag}", value)
    if flag == "broker":
        assert config.broker == settings.load(AgentConfig, SHIPPED).broker.at(value)
    elif flag == "interface":
        assert config.capture.interfaces == (value,)
    else:
        assert config.gateway == value


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_in_one_line_before_anything_is_written(tmp_path: Path, flag: str, value: str) -> None:
    done = install(tmp_path, "--gateway", "gw-1", f"--{flag}", value)
    assert done.returncode == 2
    assert f"--{flag}" in done.stderr
    assert "Secret" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("--roof", "x"),
            ("--gateway",),
            ("--root", "/absent"),
            ("gw-1",),
            ("--wheels", "/absent"),
            ("--wheels", "/"),
        ),
        ("--interface", "a", "--interface", "a"),
        tuple(word for i in range(17) for word in ("--interface", f"eth{i}")),
    ],
)
def test_a_usage_error_is_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = install(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert files(tmp_path) == []


def test_a_folder_that_is_no_bundle_or_a_damaged_one_replaces_nothing(tmp_path: Path, home: Home) -> None:
    root = tmp_path / "root"
    root.mkdir()
    install(root, "--bundle", home.bundle)
    before = bundles.load(root / "etc/botwatch/bundle").sha256
    for number, (harm, reason) in enumerate(
        (
            (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
            (lambda folder: (folder / "autoencoder.tflite").unlink(), "its manifest names autoencoder.tflite"),
            (lambda folder: (folder / "classifier.tflite").write_bytes(b"x"), "is damaged: classifier.tflite"),
            (lambda folder: (folder / "manifest.json").write_text("{}"), "names no files"),
            (shutil.rmtree, "is not a folder"),
        )
    ):
        folder = shutil.copytree(home.bundle, tmp_path / f"bundle{number}")
        harm(folder)
        done = install(root, "--bundle", folder)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert bundles.load(root / "etc/botwatch/bundle").sha256 == before


def test_a_newer_bundle_replaces_the_older_one_as_a_whole(tmp_path: Path, home: Home) -> None:
    """Also after an installation that was cut short, and where the folder has a file of another model."""
    folder = tmp_path / "etc/botwatch/bundle"
    for cut in (folder.with_name("bundle.new"), folder.with_name("bundle.old"), folder):
        cut.mkdir(parents=True)
        (cut / "of-another-model").touch()
    assert installed(tmp_path, "--bundle", home.bundle).bundle == Path("/etc/botwatch/bundle")
    assert {path.name for path in folder.iterdir()} == {path.name for path in home.bundle.iterdir()}
    assert {path.name for path in folder.parent.iterdir()} == {"agent.yaml", "bundle", "credentials"}


def test_another_program_named_botwatch_stays(tmp_path: Path) -> None:
    other = tmp_path / "usr/local/bin/botwatch"
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\n")
    done = install(tmp_path)
    assert done.returncode == 0
    assert f"{other} is another file and stays" in done.stderr
    assert other.read_text() == "#!/bin/sh\n"


KILLER = """#!/bin/sh
count=$(($(cat {count} 2>/dev/null || echo 0) + 1))
echo $count > {count}
{before}
if [ $count -eq ${{KILL_AT:-0}} ]; then kill -9 $PPID; fi
exec {real} "$@"
"""


@pytest.mark.parametrize("done_first", [False, True], ids=["killed before the step", "killed after it"])
def test_an_installation_that_is_killed_at_any_step_leaves_a_model_and_goes_on(
    tmp_path: Path, home: Home, *, done_first: bool
) -> None:
    """Also a run without the flags puts the old model or the new one in its place, and leaves nothing beside it."""
    tools, count = tmp_path / "bin", tmp_path / "count"
    tools.mkdir()
    for name in ("mv", "cp", "rm", "mkdir", "chmod", "ln"):
        real = shutil.which(name)
        before = f'if [ $count -eq ${{KILL_AT:-0}} ]; then {real} "$@"; fi' if done_first else ""
        (tools / name).write_text(KILLER.format(count=count, real=real, before=before))
        (tools / name).chmod(0o755)
    older = shutil.copytree(home.bundle, tmp_path / "older")
    manifest = (older / "manifest.json").read_text()
    (older / "manifest.json").write_text(manifest + " ")
    whole = {bundles.load(older).sha256, bundles.load(home.bundle).sha256}
    step, killed = 0, True
    while killed:
        step += 1
        root = tmp_path / f"root{step}"
        root.mkdir()
        assert installed(root, "--bundle", older, "--gateway", "gw-1").gateway == "gw-1"
        count.unlink(missing_ok=True)
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "KILL_AT": str(step)}
        command = [
            "sh",
            str(UNITS / "install.sh"),
            "--root",
            str(root),
            "--bundle",
            str(home.bundle),
            "--gateway",
            "gw-2",
        ]
        killed = subprocess.run(command, env=env, capture_output=True, check=False).returncode == -9
        assert installed(root).gateway in ("gw-1", "gw-2")
        assert bundles.load(root / "etc/botwatch/bundle").sha256 in whole
        assert installed(root, "--bundle", home.bundle, "--gateway", "gw-2").gateway == "gw-2"
        assert bundles.load(root / "etc/botwatch/bundle").sha256 == bundles.load(home.bundle).sha256
        assert {path.name for path in (root / "etc/botwatch").iterdir()} == {"agent.yaml", "bundle", "credentials"}
    assert step > 10


def test_a_configuration_that_is_a_link_stays_one(tmp_path: Path) -> None:
    installed(tmp_path, "--gateway", "gw-1")
    elsewhere = (tmp_path / CONFIG).rename(tmp_path / "kept.yaml")
    (tmp_path / CONFIG).symlink_to("../../kept.yaml")
    assert install(tmp_path).returncode == 0
    assert install(tmp_path, "--gateway", "gw-1").returncode == 0
    done = install(tmp_path, "--gateway", "gw-2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is a symbolic link" in done.stderr
    assert (tmp_path / CONFIG).is_symlink()
    assert settings.load(AgentConfig, elsewhere).gateway == "gw-1"


@pytest.mark.parametrize("link", ["etc/botwatch", "usr/lib", "etc"])
def test_a_link_of_an_image_does_not_lead_the_installer_out_of_it(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    done = install(root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "leads out of the image" in done.stderr
    assert files(outside) == []
    (root / link).unlink()
    (root / link).symlink_to(tmp_path / "nowhere")
    assert "leads out of the image" in install(root).stderr
