"""Checkpoint files: what goes in comes out, equal states are equal bytes, and bad files are refused by name."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import full_disk

from acktr.agents import checkpoint
from acktr.agents.checkpoint import DamagedFileError, load, save
from acktr.agents.files import link_atomically, remove_temporaries, write_atomically
from acktr.errors import UserError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


FORGED_TREES = [
    {"x": {"tensor": "absent"}},
    {"x": {"call": "os.system"}},
    {"x": {"a": 1, "b": 2}},
    {"x": {"int": "ten"}},
    [1],
    None,
]


def example() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "policy": {"a/b.weight": torch.randn(3, 4, generator=generator), "a~b": torch.tensor(7)},
        "training": {
            "counters": [1, 2, 2**70],
            "returns": [1.5, -math.inf],
            "none": None,
            "rng": generator.get_state(),
        },
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randint(0, 2**31, (4, 6), dtype=torch.int32).view(torch.uint8) % 2
    tensor = tensor.to(dtype) if dtype is not torch.float32 else torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    save(tmp_path / "f", {"x": tensor}, kind="checkpoint")
    back = load(tmp_path / "f").state["x"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert back.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_views_transposes_empty_scalar_and_parameter_tensors_survive(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "base": base,
        "row": base[1],
        "transposed": base.t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save(tmp_path / "f", state, kind="checkpoint")
    back = load(tmp_path / "f").state
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].shape == tensor.shape
        assert not back[name].requires_grad
    back["row"].zero_()
    assert back["base"].sum() == base.sum(), "tensors come back separate"


def test_integers_floats_and_text_come_back_exactly(tmp_path: Path) -> None:
    integers = [0, -1, 2**53, 2**53 + 1, -(2**200), 10**5000, True, False]
    values = [*integers, None, "", "é\n\ud800", 1.0, 0.1, 5e-324, math.inf]
    save(tmp_path / "f", {"v": values, "zero": -0.0, "nan": math.nan, "deep": [[{"a": [[]]}], {}]}, kind="policy")
    loaded = load(tmp_path / "f")
    assert loaded.kind == "policy"
    assert loaded.state["v"] == values
    assert [type(value) for value in loaded.state["v"]] == [type(value) for value in values]
    assert math.copysign(1.0, loaded.state["zero"]) == -1.0
    assert math.isnan(loaded.state["nan"])
    assert loaded.state["deep"] == [[{"a": [[]]}], {}]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TREES = st.dictionaries(
    st.text(), st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_structure_comes_back_equal(tree: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "f", tree, kind="checkpoint")
    assert load(tmp_path / "f").state == tree


def test_equal_states_are_equal_bytes_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    state = example()
    other = {name: dict(reversed(part.items())) for name, part in reversed(example().items())}
    save(tmp_path / "a", state, kind="checkpoint")
    save(tmp_path / "b", other, kind="checkpoint")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bytes_are_equal_across_processes(tmp_path: Path) -> None:
    """Several metadata keys would be written in an order that changes from process to process."""
    program = (
        "import sys, torch; from pathlib import Path; from acktr.agents.checkpoint import save;"
        "save(Path(sys.argv[1]), {c: {'t': torch.ones(3), 'n': 1.5} for c in 'abcdef'}, kind='checkpoint')"
    )
    for name in "ab":
        environment = {**os.environ, "PYTHONHASHSEED": str(ord(name))}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True, env=environment)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_plain_safetensors_with_one_metadata_key(tmp_path: Path) -> None:
    save(tmp_path / "f", example(), kind="checkpoint")
    with safetensors.safe_open(tmp_path / "f", framework="pt") as file:
        assert set(file.metadata()) == {"acktr"}
        assert json.loads(file.metadata()["acktr"])["format_version"] == 1
        assert "policy/a~1b.weight" in file.keys()  # noqa: SIM118  safe_open is no dictionary


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", torch.Size, 1j])
def test_what_the_format_cannot_hold_is_refused_with_its_place(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'training/momentum/0'"):
        save(tmp_path / "f", {"training": {"momentum": [value]}}, kind="checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_keys_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'state'.*got 0"):
        save(tmp_path / "f", {"state": {0: 1}}, kind="checkpoint")


# --- bad files ---------------------------------------------------------------------------------------------------


def test_a_header_whose_length_reads_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """The first two bytes of the file are the low bytes of the header's length: 0x0280 is a pickle's magic number."""
    lengths = set()
    for padding in range(0, 700, 8):  # headers are padded to multiples of 8
        save(tmp_path / "f", {"x": "a" * padding}, kind="checkpoint")
        lengths.add((tmp_path / "f").read_bytes()[:2])
        load(tmp_path / "f")
    assert b"\x80\x02" in lengths


def test_a_file_cut_anywhere_is_called_truncated_or_damaged(tmp_path: Path) -> None:
    save(tmp_path / "f", example(), kind="checkpoint")
    data = (tmp_path / "f").read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 8, len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(DamagedFileError, match=r"truncated|damaged"):
            load(tmp_path / "cut")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    save(tmp_path / "f", example(), kind="checkpoint")
    data = (tmp_path / "f").read_bytes()
    for place in range(0, len(data), 53):
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        (tmp_path / "bad").write_bytes(damaged)
        with pytest.raises(UserError):
            load(tmp_path / "bad")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch", "torch-legacy"])
def test_a_file_with_a_pickle_is_refused_and_not_run(protocol: int | str, tmp_path: Path) -> None:
    file, proof = tmp_path / "policy.safetensors", tmp_path / "was-run"
    if isinstance(protocol, int):
        file.write_bytes(pickle.dumps(Bomb(proof), protocol=protocol))
    else:
        torch.save({"a": Bomb(proof)}, file, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(UserError, match="not a file of acktr" if protocol == 0 else "pickle"):
        load(file)
    assert not proof.exists()


def test_foreign_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_text("<html>404 not found</html>, and more than eight bytes of it")
    with pytest.raises(UserError, match="no safetensors file"):
        load(file)
    safetensors.torch.save_file({"a": torch.ones(2)}, file)
    with pytest.raises(UserError, match="without acktr's manifest"):
        load(file)
    safetensors.torch.save_file({"a": torch.ones(2)}, file, metadata={"acktr": '{"format": "other"}'})
    with pytest.raises(UserError, match="another format"):
        load(file)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def test_a_newer_format_says_upgrade_and_counts_as_undamaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    save(tmp_path / "f", example(), kind="checkpoint")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"format 2 is newer than the 1.*upgrade") as caught:
        load(tmp_path / "f")
    assert not isinstance(caught.value, DamagedFileError)


@pytest.mark.parametrize("tree", FORGED_TREES)
def test_a_forged_manifest_is_refused(tree: Any, tmp_path: Path) -> None:
    manifest = {"format": "acktr", "format_version": 1, "kind": "checkpoint", "tree": tree, "digest": ""}
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "f", metadata={"acktr": json.dumps(manifest)})
    with pytest.raises(DamagedFileError):
        load(tmp_path / "f")


def test_a_manifest_nested_too_deep_is_refused(tmp_path: Path) -> None:
    tree = '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"
    manifest = '{"format":"acktr","format_version":1,"kind":"checkpoint","digest":"","tree":' + tree + "}"
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "f", metadata={"acktr": manifest})
    with pytest.raises(DamagedFileError):
        load(tmp_path / "f")


# --- atomic writing ----------------------------------------------------------------------------------------------


def test_a_kill_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    save(file, {"x": torch.ones(1000)}, kind="checkpoint")
    before = file.read_bytes()
    program = (
        "import sys, torch; from pathlib import Path; from acktr.agents.checkpoint import save;"
        "save(Path(sys.argv[1]), {'x': torch.zeros(1000)}, kind='checkpoint')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], env={**os.environ, "ACKTR_TEST_SLOW_SAVE": "60"}
    )
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in tmp_path.glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert file.read_bytes() == before
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_fills_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "f.safetensors"
    save(file, {"x": torch.ones(10)}, kind="checkpoint")
    before = file.read_bytes()
    with full_disk(4096), pytest.raises(OSError, match="File too large"):
        save(file, {"x": torch.ones(10_000)}, kind="checkpoint")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupt_in_mid_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("ACKTR_TEST_SLOW_SAVE", "1")
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "f", b"content")
    assert list(tmp_path.iterdir()) == []


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "f", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_linking_replaces_and_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    link_atomically(source, target)
    link_atomically(source, target)  # of one file onto itself: must leave no temporary name
    assert target.samefile(source)

    def no_links(*_: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    target.unlink()
    link_atomically(source, target)
    assert target.read_bytes() == b"new"
    assert not target.samefile(source)
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_a_folder_that_takes_no_file_is_told_by_the_name_that_the_caller_knows(tmp_path: Path) -> None:
    """The error named a temporary file that nobody had heard of."""
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "nowhere" / "f", b"content")
    assert caught.value.filename == str(tmp_path / "nowhere" / "f")
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError) as caught_there:
        write_atomically(tmp_path / "taken", b"content")
    assert (caught_there.value.filename, caught_there.value.filename2) == (str(tmp_path / "taken"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
