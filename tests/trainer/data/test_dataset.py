"""Rows are read completely and with labels, or an error names the file, the column and the row."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from edge_agent.capture.features import Extractor
from edge_agent.capture.sources import open_file
from edge_agent.contract.captures import mac_text
from edge_agent.contract.columns import ALL_COLUMNS, CLEAN, COMPAT, NBAIOT_COLUMNS
from trainer.config import DatasetEntry
from trainer.data import dataset, extract
from trainer.data.dataset import load
from trainer.data.row_table import DatasetError, Limits, RowTable

LIMITS = Limits()
CAMERA, PLUG, ROUTER = 0x02_00_00_00_00_05, 0x02_00_00_00_00_06, 0x02_00_00_00_00_FE
DAY = 86_400_000_000_000
START = 20_000 * DAY  # 2024-10-04T00:00:00Z


def published(path: Path, limits: Limits = LIMITS, **filters: tuple[str, ...]) -> RowTable:
    return load([DatasetEntry("nbaiot", path, **filters)], NBAIOT_COLUMNS, COMPAT, limits)


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        published(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- published rows


def test_uci_folders_and_kaggle_names_give_the_same_rows(tmp_path, write_rows):
    write_rows("uci/Danmini_Doorbell/benign_traffic.csv", 30)
    write_rows("uci/Danmini_Doorbell/mirai_attacks/scan.csv", 10)
    write_rows("uci/Danmini_Doorbell/gafgyt_attacks/combo.csv.gz", 12, compress=True)
    write_rows("flat/1.benign.csv.gz", 30, compress=True)
    write_rows("flat/1.mirai.scan.csv", 10)
    write_rows("flat/1.gafgyt.combo.csv", 12)
    uci, flat = published(tmp_path / "uci"), published(tmp_path / "flat")
    assert uci.devices == flat.devices == ("Danmini_Doorbell",)
    assert set(uci.labels) == set(flat.labels) == {"benign", "mirai.scan", "gafgyt.combo"}
    for label in uci.labels:
        one, other = (t.values[t.label == t.labels.index(label)] for t in (uci, flat))
        assert (one == other).all()
    assert not uci.t_ns.any()
    assert not uci.generated
    assert len(uci.inputs) == 3


def test_reordered_columns_are_taken_by_name(tmp_path, write_rows):
    write_rows("a/1.benign.csv")
    write_rows("b/1.benign.csv", change=lambda f: f.select(reversed(f.columns)))
    assert (published(tmp_path / "a").values == published(tmp_path / "b").values).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("HH_L1_pcc"), "column 'HH_L1_pcc' is missing"),
        (lambda f: f.with_columns(pl.lit("1").alias("label")), "unknown column 'label'"),
        (lambda f: f.rename({"HH_L1_pcc": "HH_L1_ppc"}), "unknown column 'HH_L1_ppc'"),
    ],
)
def test_a_file_with_wrong_columns_is_refused_by_file_and_column(tmp_path, write_rows, change, message):
    path = write_rows("1.benign.csv", change=change)
    assert refused(tmp_path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("fast", "'fast' is not a number"),
        ("1.5.2", "'1.5.2' is not a number"),
        ("NaN", "nan instead of a number"),
        ("inf", "inf instead of a number"),
        ("-inf", "-inf instead of a number"),
        ("1e300", "1e+300 instead of a number"),  # more than float32 holds
        (None, "no value instead of a number"),
    ],
)
def test_a_cell_that_is_no_finite_number_is_refused_by_file_row_and_column(tmp_path, write_rows, cell, message):
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        column = [cell if i == 6 else v for i, v in enumerate(frame["H_L3_mean"])]
        return frame.with_columns(pl.Series("H_L3_mean", column, dtype=pl.String))

    path = write_rows("1.benign.csv", change=change)
    assert refused(tmp_path) == f"{path}: row 7, column 'H_L3_mean': {message}"


def test_a_line_cut_short_is_refused(tmp_path, write_rows):
    path = write_rows("1.benign.csv")
    path.write_text(path.read_text()[:-200])
    assert f"{path}: row 20, column " in refused(tmp_path)


def test_a_damaged_gz_file_is_refused(tmp_path, write_rows):
    path = write_rows("1.benign.csv.gz", 400, compress=True)
    path.write_bytes(path.read_bytes()[:20_000])
    assert str(path) in refused(tmp_path)


def test_packed_files_are_refused_with_advice(tmp_path, write_rows):
    write_rows("uci/Danmini_Doorbell/benign_traffic.csv")
    (tmp_path / "uci/Danmini_Doorbell/mirai_attacks.rar").write_bytes(b"Rar!")
    assert refused(tmp_path / "uci").endswith("mirai_attacks.rar: is packed; unpack it into mirai_attacks/")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/archive.zip").write_bytes(b"PK")
    assert refused(tmp_path / "other").endswith("archive.zip: is packed; unpack it there")
    assert refused(tmp_path / "other/archive.zip").endswith("unpack it and name the folder")


def test_a_folder_without_published_files_is_refused_with_the_names_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert "neither 1.benign.csv (Kaggle) nor <Device>/benign_traffic.csv (UCI)" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "nowhere")


def test_the_same_rows_packed_and_unpacked_are_not_counted_twice(tmp_path, write_rows):
    write_rows("1.benign.csv")
    write_rows("1.benign.csv.gz", compress=True)
    assert "holds the same rows as 1.benign.csv" in refused(tmp_path)


def test_rows_that_leak_the_date_do_not_pass_as_clean(tmp_path, write_rows):
    write_rows("1.benign.csv")
    entry = DatasetEntry("nbaiot", tmp_path)
    with pytest.raises(DatasetError, match="carry the date in HH_jit"):
        load([entry], NBAIOT_COLUMNS, CLEAN, Limits())
    without = tuple(c for c in NBAIOT_COLUMNS if not c.startswith("HH_jit"))
    assert load([entry], without, CLEAN, Limits()).columns == without


def test_only_the_devices_and_labels_asked_for_are_read(tmp_path, write_rows):
    for name in ("1.benign.csv", "1.mirai.scan.csv", "2.benign.csv"):
        write_rows(name)
    assert published(tmp_path, devices=("Ecobee_Thermostat",)).devices == ("Ecobee_Thermostat",)
    assert published(tmp_path, labels=("mirai.scan",)).labels == ("mirai.scan",)
    with pytest.raises(DatasetError, match="has no device 'Toaster'; it has Danmini_Doorbell, Ecobee_Thermostat"):
        published(tmp_path, devices=("Toaster",))


def test_many_files_are_thinned_alike_until_all_fit_into_memory(tmp_path, write_rows):
    """A fit on some hundred captures would need tens of GB otherwise; short files lose nothing."""
    for number, rows in enumerate((3000, 3000, 3000, 600), 1):
        write_rows(f"{number}.benign.csv", rows)
    whole = published(tmp_path)
    table = published(tmp_path, Limits(total_rows=5000))
    sizes = [int((table.capture == code).sum()) for code in range(4)]
    assert sizes[3] == 600
    assert max(sizes[:3]) - min(sizes[:3]) < 256
    assert 2000 < len(table) <= 5000
    assert any("more than total_rows, 5,000" in warning for warning in table.warnings)
    assert whole.warnings == ()
    rows = {tuple(row) for row in whole.values[whole.capture == 0].tolist()}
    assert {tuple(row) for row in table.values[table.capture == 0].tolist()} <= rows


def test_long_files_are_thinned_to_blocks_of_neighbours_over_the_whole_file(tmp_path, write_rows):
    rows = [f"{i}.0" for i in range(5000)]
    write_rows("1.benign.csv", 5000, change=lambda f: f.with_columns(pl.Series("H_L5_mean", rows)))
    table = published(tmp_path, Limits(max_rows=1000))
    kept = table.values[:, NBAIOT_COLUMNS.index("H_L5_mean")]
    assert 500 <= len(kept) <= 1000
    assert kept[0] == 0
    assert kept[-1] > 4000
    breaks = np.flatnonzero(np.diff(kept) != 1) + 1
    assert all(len(block) == 125 for block in np.split(kept, breaks)[:-1])
    assert (published(tmp_path, Limits(max_rows=1000)).values == table.values).all()


def test_real_published_rows_load(tmp_path, nbaiot_rows):
    folder = tmp_path / "Danmini_Doorbell"
    (folder / "gafgyt_attacks").mkdir(parents=True)
    os.symlink(nbaiot_rows / "danmini_doorbell.benign.csv.gz", folder / "benign_traffic.csv.gz")
    os.symlink(nbaiot_rows / "danmini_doorbell.gafgyt_scan.csv.gz", folder / "gafgyt_attacks/scan.csv.gz")
    table = published(tmp_path)
    assert [int((table.label == table.labels.index(name)).sum()) for name in ("benign", "gafgyt.scan")] == [2250, 250]
    first = table.values[table.label == table.labels.index("gafgyt.scan")][1]
    assert first[:3] == pytest.approx([1.0271243971248014, 98.0, 1.8189894035458565e-12])


# ---- captures


def manifest(folder: Path, *captures: str, generated: bool = True) -> DatasetEntry:
    folder.mkdir(exist_ok=True)
    lines = "".join(f"  - {{{capture}}}\n" for capture in captures)
    (folder / "manifest.yaml").write_text(f"generated: {str(generated).lower()}\nseed: 7\ncaptures:\n{lines}")
    return DatasetEntry("captures", folder)


def captured(entry: DatasetEntry, limits: Limits = LIMITS) -> RowTable:
    return load([entry], ALL_COLUMNS, CLEAN, limits)


def groups(table: RowTable) -> dict[tuple[str, str], int]:
    found = zip(table.device.tolist(), table.label.tolist(), strict=True)
    names = [(table.devices[d], table.labels[c]) for d, c in found]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_every_sender_of_a_benign_capture_is_a_device_of_its_own(tmp_path, write_pcap, traffic):
    write_pcap(tmp_path / "day1.pcap", sorted(traffic(CAMERA, 30) + traffic(ROUTER, 20)))
    table = captured(manifest(tmp_path, f'file: day1.pcap, device: camera-1, mac: "{mac(CAMERA)}", label: benign'))
    assert groups(table) == {("camera-1", "benign"): 30, (f"camera-1/{mac(ROUTER)}", "benign"): 20}
    assert table.generated
    assert set(table.mac.tolist()) == {CAMERA, ROUTER}
    assert {Path(p).name for p in table.inputs} == {"manifest.yaml", "day1.pcap"}
    assert all(len(digest) == 64 for digest in table.inputs.values())


@pytest.mark.parametrize("use_lead", [False, True])
def test_only_the_attacker_while_it_attacks_counts_as_attack(tmp_path, write_pcap, traffic, use_lead):
    frames = sorted(traffic(CAMERA, 100) + traffic(ROUTER, 100))
    write_pcap(tmp_path / "scan.pcap", frames)
    window = "attack: {start: 2024-10-04T00:00:40.000000Z, end: 2024-10-04T00:00:59.000000Z, spoofed: false}"
    entry = manifest(tmp_path, f'file: scan.pcap, device: cam, mac: "{mac(CAMERA)}", label: mirai.scan, {window}')
    found = groups(captured(entry, Limits(use_attack_lead=use_lead)))
    assert found.pop(("cam", "mirai.scan")) == 20
    assert found == ({("cam", "benign"): 40, (f"cam/{mac(ROUTER)}", "benign"): 40} if use_lead else {})


def test_an_attack_without_mac_or_window_is_all_of_its_capture(tmp_path, write_pcap, traffic):
    write_pcap(tmp_path / "scan.pcap", sorted(traffic(CAMERA, 10) + traffic(ROUTER, 10)))
    assert groups(captured(manifest(tmp_path, "file: scan.pcap, device: x, label: mirai.scan"))) == {
        ("x", "mirai.scan"): 20
    }


def test_the_days_of_a_device_pass_one_extractor_in_time_order(tmp_path, write_pcap, traffic):
    """Its state continues: on the second day no peer is new, whatever the order of days in the manifest."""
    days = [write_pcap(tmp_path / f"{d}.pcap", traffic(CAMERA, 50, START + d * DAY)) for d in range(2)]
    extractor, expected = Extractor(seed=0), []
    for day in days:
        with open_file(day) as source:
            expected.append(extractor.push(source, 100).values)
    own = f'device: c, mac: "{mac(CAMERA)}", label: benign'
    table = captured(manifest(tmp_path, f"file: 1.pcap, {own}", f"file: 0.pcap, {own}"))
    order = np.argsort(table.t_ns, kind="stable")
    assert (table.values[order] == np.concatenate(expected)).all()
    new_peers = table.values[order][:, ALL_COLUMNS.index("device_L0.01_new_peers")]
    assert new_peers[:50].max() > 2.5
    assert new_peers[50:].max() < 0.01


def test_a_capture_that_ends_early_is_used_up_to_there_with_a_warning(tmp_path, write_pcap, traffic):
    path = write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 30))
    path.write_bytes(path.read_bytes()[:-10])
    table = captured(manifest(tmp_path, f'file: day.pcap, device: c, mac: "{mac(CAMERA)}", label: benign'))
    assert len(table) == 29
    assert len(table.warnings) == 1
    assert "day.pcap" in table.warnings[0]
    assert "29 rows" in table.warnings[0]


@pytest.mark.parametrize("content", [b"", b"this is no capture"])
def test_a_file_that_is_not_a_capture_is_refused(tmp_path, content):
    (tmp_path / "day.pcap").write_bytes(content)
    with pytest.raises(DatasetError, match=r"day\.pcap"):
        captured(manifest(tmp_path, "file: day.pcap, device: c, label: benign"))


SCAN = "file: day.pcap, device: c, label: mirai.scan"


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("file: gone.pcap, device: c, label: benign", "names gone.pcap, which is not in"),
        ("file: day.pcap, device: c", "missing key 'label'"),
        ("file: day.pcap, device: c, label: benign, kinds: x", "unknown key 'kinds'"),
        ('file: day.pcap, device: c, label: benign, mac: "02:00"', "'02:00' is not a MAC address"),
        (f"{SCAN}, attack: {{start: 2024-10-04T00:00:40}}", "missing key 'end'"),
        (f"{SCAN}, attack: {{start: 2024-10-04T00:00:40, end: 2024-10-04T00:01:40}}", "need a time zone"),
        (f"{SCAN}, attack: {{start: 2024-10-05T00:00:40Z, end: 2024-10-04T00:01:40Z}}", "end is before start"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_in_one_line(tmp_path, write_pcap, traffic, capture, message):
    write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 3))
    with pytest.raises(DatasetError) as caught:
        captured(manifest(tmp_path, capture))
    assert message in str(caught.value)
    assert "manifest.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_can_be_in_another_folder_than_its_captures(tmp_path, write_pcap, traffic):
    write_pcap(tmp_path / "data/day.pcap", traffic(CAMERA, 3))
    folder = tmp_path / "here"
    entry = manifest(folder, "file: day.pcap, device: c, label: benign")
    moved = dataclasses.replace(entry, path=folder / "manifest.yaml", root=tmp_path / "data")
    assert len(captured(moved)) == 3


def test_a_label_without_rows_is_still_known(tmp_path, write_pcap, traffic):
    """A class without rows must be an error, not a missing class."""
    write_pcap(tmp_path / "day.pcap", traffic(CAMERA, 3))
    write_pcap(tmp_path / "scan.pcap", traffic(CAMERA, 3))
    table = captured(
        manifest(
            tmp_path,
            "file: day.pcap, device: c, label: benign",
            f'file: scan.pcap, device: c, mac: "{mac(PLUG)}", label: mirai.scan',
        )
    )
    assert table.labels == ("benign", "mirai.scan")
    assert len(table) == 3


# ---- Parquet files of rows


@pytest.fixture
def rows_file(tmp_path, write_pcap, traffic):
    capture = write_pcap(tmp_path / "day.pcap", sorted(traffic(CAMERA, 30) + traffic(ROUTER, 20)))
    assert extract.run([capture], tmp_path / "rows.parquet", "clean", 1024) == 0
    return tmp_path / "rows.parquet"


def test_extracted_rows_are_the_rows_of_the_capture(tmp_path, rows_file):
    table = load([DatasetEntry("rows", rows_file, label="benign")], ALL_COLUMNS, CLEAN, Limits())
    entry = manifest(tmp_path, "file: day.pcap, device: c, label: benign")
    direct = captured(entry)
    order, same = (np.lexsort((t.mac, t.t_ns)) for t in (table, direct))
    assert (table.values[order] == direct.values[same]).all()
    assert (table.t_ns[order] == direct.t_ns[same]).all()
    assert groups(table) == {(mac(CAMERA), "benign"): 30, (mac(ROUTER), "benign"): 20}


def test_extracted_rows_have_the_facts_of_their_packet(rows_file):
    frame = pl.read_parquet(rows_file)
    assert frame.columns == [*dataset.META_COLUMNS, *ALL_COLUMNS]
    row = frame.filter(pl.col("mac") == mac(CAMERA)).row(0, named=True)
    assert row["peer_mac"] == mac(ROUTER)
    assert (row["src"], row["dst"]) == ("10.0.0.157", "10.0.0.201")
    assert (row["sport"], row["dport"], row["proto"], row["length"]) == (40000, 53, 17, 60)
    assert row["time"].isoformat() == "2024-10-04T00:00:00+00:00"


def test_device_and_label_columns_are_used_if_there_are_any(rows_file):
    frame = pl.read_parquet(rows_file)
    camera = pl.col("mac") == mac(CAMERA)
    label = pl.when(camera).then(pl.lit("mirai.scan")).otherwise(pl.lit("benign")).alias("label")
    frame.with_columns(label, pl.lit("home").alias("device")).write_parquet(rows_file)
    table = load([DatasetEntry("rows", rows_file)], ALL_COLUMNS, CLEAN, Limits())
    assert groups(table) == {("home", "benign"): 20, ("home", "mirai.scan"): 30}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("HH_L1_pcc"), "has no column 'HH_L1_pcc'"),
        (lambda f: f.with_columns(pl.lit(1).alias("speed")), "unknown column 'speed'"),
        (lambda f: f.with_columns(pl.lit("x").alias("HH_L1_pcc")), "column 'HH_L1_pcc' is not numeric"),
        (lambda f: f.with_columns(pl.lit(float("nan")).alias("HH_L1_pcc")), "row 1, column 'HH_L1_pcc': nan"),
        (lambda f: f.with_columns(pl.lit(None, pl.Float32).alias("HH_L1_pcc")), "row 1, column 'HH_L1_pcc': no value"),
        (lambda f: f.with_columns(pl.lit("router").alias("mac")), "'router' is not a MAC address"),
    ],
)
def test_a_file_of_rows_that_is_wrong_is_refused(rows_file, change, message):
    change(pl.read_parquet(rows_file)).write_parquet(rows_file)
    with pytest.raises(DatasetError) as caught:
        load([DatasetEntry("rows", rows_file, label="benign")], ALL_COLUMNS, CLEAN, Limits())
    assert message in str(caught.value)
    assert str(rows_file) in str(caught.value)


def test_rows_without_labels_or_of_another_jitter_are_refused(rows_file, tmp_path):
    with pytest.raises(DatasetError, match="has no column 'label'"):
        load([DatasetEntry("rows", rows_file)], ALL_COLUMNS, CLEAN, Limits())
    with pytest.raises(DatasetError, match=f"rows are of schema {CLEAN}, but the config asks for {COMPAT}"):
        load([DatasetEntry("rows", rows_file, label="benign")], ALL_COLUMNS, COMPAT, Limits())
    (tmp_path / "text.parquet").write_text("no rows")
    with pytest.raises(DatasetError, match="not a Parquet file of rows"):
        load([DatasetEntry("rows", tmp_path / "text.parquet", label="benign")], ALL_COLUMNS, CLEAN, Limits())


def test_columns_of_the_counts_rule_are_added_if_every_source_has_them(tmp_path, rows_file, write_rows):
    without = tuple(c for c in NBAIOT_COLUMNS if not c.startswith("HH_jit"))
    mine = DatasetEntry("rows", rows_file, label="benign")
    assert len(load([mine], without, CLEAN, Limits()).columns) == 110
    write_rows("published/1.benign.csv")
    both = load([mine, DatasetEntry("nbaiot", tmp_path / "published")], without, CLEAN, Limits())
    assert both.columns == without
    assert len(both) == 70


def mac(number: int) -> str:
    return mac_text(number)
