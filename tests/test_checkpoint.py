"""The files of a run: round trips, crashes at every stage, and damaged or hostile files."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_hrssm import checkpoint, files
from pyro_hrssm.checkpoint import Checkpoint, CheckpointError
from pyro_hrssm.errors import InputError

RECORD = {"model": {"hidden": 128, "max_length": None}, "best": 123.456, "note": 'a "sha256":"' + "1" * 64 + '" ünï'}


def example(step: int = 500) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step,
        {
            "weight": torch.randn(3, 4, generator=generator),
            "double": torch.randn(2, generator=generator, dtype=torch.float64),
            "half": torch.randn(2, generator=generator).bfloat16(),
            "rng": torch.randint(0, 256, (16,), generator=generator, dtype=torch.uint8),
            "count": torch.tensor(2**60 + step),
            "flags": torch.tensor([True, False, True]),
            "scalar": torch.tensor(float("nan")),
            "empty": torch.zeros(0, 3),
            'odd "name" é': torch.arange(3),
        },
        dict(RECORD),
    )


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    assert found.record == expected.record
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        assert torch.equal(found.tensors[name].nan_to_num(-1), tensor.nan_to_num(-1))


def steps(run: Path) -> list[int]:
    return sorted(int(file.stem) for file in (run / "checkpoints").glob("*.safetensors"))


def everything(run: Path) -> set[str]:
    return {file.name for file in (run / "checkpoints").iterdir()}


def failing(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def flipped(path: Path, position: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bits
    path.write_bytes(data)


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, example(), keep=3)
    assert path == tmp_path / "checkpoints" / "00000500.safetensors"
    assert_same(checkpoint.load(path), example())
    assert_same(checkpoint.load(tmp_path), example())


def test_round_trip_of_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint(0, {}, {}), keep=1)
    assert_same(checkpoint.load(tmp_path), Checkpoint(0, {}, {}))


def test_infinities_in_the_record_survive(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint(1, {}, {"best": float("inf")}), keep=1)
    assert checkpoint.load(tmp_path).record == {"best": float("inf")}


def test_views_ties_and_gradients(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.ones(2))
    tensors: dict[str, Tensor] = {
        "transposed": weight.T,
        "part": weight[1:, ::2],
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "encoder": tied,
        "decoder": tied,
    }
    checkpoint.save(tmp_path, Checkpoint(1, tensors, {}), keep=1)
    assert_same(checkpoint.load(tmp_path), Checkpoint(1, tensors, {}))
    checkpoint.load(tmp_path).tensors["expanded"][0] = 2  # Writable, element by element.


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (250, 500, 1000, 750_000_000_0):
        checkpoint.save(tmp_path, example(step), keep=2)
    assert steps(tmp_path) == [1000, 7_500_000_000]
    assert checkpoint.load(tmp_path).step == 7_500_000_000


def test_a_path_that_the_run_left_is_removed(tmp_path: Path) -> None:
    for step in (250, 500, 750):
        checkpoint.save(tmp_path, example(step), keep=3)
    checkpoint.save(tmp_path, example(300), keep=1)  # Resumed from 250.
    assert steps(tmp_path) == [300]


def test_old_ones_that_a_kill_has_left_are_removed(tmp_path: Path) -> None:
    for step in (250, 500, 750, 1000):
        checkpoint.save(tmp_path, example(step), keep=4)
    checkpoint.remove_old(tmp_path, 750, keep=2)
    assert steps(tmp_path) == [500, 750, 1000]  # those of later steps go once the run is past them
    checkpoint.remove_old(tmp_path / "nosuch", 750, keep=2)


def test_an_old_one_that_cannot_be_removed_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, example(250), keep=1)
    monkeypatch.setattr(Path, "unlink", failing(errno.EACCES))
    with pytest.warns(UserWarning, match=r"cannot remove .*00000250"):
        checkpoint.save(tmp_path, example(500), keep=1)
    assert checkpoint.load(tmp_path).step == 500


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_crash_leaves_the_previous_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, crash: Any
) -> None:
    def stop(*_: Any) -> None:
        raise crash

    checkpoint.save(tmp_path, example(250), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, stop)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            checkpoint.save(tmp_path, example(500), keep=1)
    assert everything(tmp_path) == {"00000250.safetensors"}
    assert_same(checkpoint.load(tmp_path), example(250))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(CheckpointError, match=r"No space left.*there is no earlier one") as first:
            checkpoint.save(tmp_path, example(250), keep=1)
    checkpoint.save(tmp_path, example(250), keep=1)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(CheckpointError, match=r"00000500.*No space left.*previous checkpoint, step 250, is") as second:
        checkpoint.save(tmp_path, example(500), keep=1)
    assert "\n" not in str(first.value) + str(second.value)


def test_an_older_process_killed_while_writing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(250), keep=2)
    torn = tmp_path / "checkpoints" / ".00000500.safetensors.123.tmp"
    torn.write_bytes((tmp_path / "checkpoints" / "00000250.safetensors").read_bytes()[:100])
    assert checkpoint.load(tmp_path).step == 250
    checkpoint.save(tmp_path, example(500), keep=2)
    assert everything(tmp_path) == {"00000250.safetensors", "00000500.safetensors"}


def test_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(tmp_path, example(), keep=1)
    assert_same(checkpoint.load(tmp_path), example())


def test_a_damaged_one_is_passed_over_by_name(tmp_path: Path) -> None:
    for step in (250, 500, 750):
        checkpoint.save(tmp_path, example(step), keep=3)
    folder = tmp_path / "checkpoints"
    (folder / "00000500.safetensors").write_bytes(b"")
    flipped(folder / "00000750.safetensors", -1)
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert_same(checkpoint.load(tmp_path), example(250))
    assert ["00000750" in str(warned[0].message), "00000500" in str(warned[1].message)] == [True, True]


def test_a_folder_without_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must hold a whole checkpoint such as checkpoints/.*none is there"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, example(), keep=1)
    flipped(path, -1)
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CheckpointError, match="do not match") as error:
        checkpoint.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*absent"):
        checkpoint.load(tmp_path / "absent")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("run"), example(), keep=1)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10**9), bits=st.integers(1, 255))
def test_every_changed_byte_is_found(sealed: Path, position: int, bits: int) -> None:
    data = sealed.read_bytes()
    copy = sealed.with_name("copy")
    copy.write_bytes(data)
    flipped(copy, position % len(data), bits)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(copy)
    assert "\n" not in str(error.value)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(0, 10**9), longer=st.booleans())
def test_every_truncation_is_found(sealed: Path, length: int, longer: bool) -> None:
    data = sealed.read_bytes()
    copy = sealed.with_name("copy")
    copy.write_bytes(data + bytes(1 + length % 100) if longer else data[: length % len(data)])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(copy)
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_break_the_reader(sealed: Path, data: bytes) -> None:
    copy = sealed.with_name("copy")
    for content in (data, len(data).to_bytes(8, "little") + data):
        copy.write_bytes(content)
        with pytest.raises(CheckpointError):
            checkpoint.load(copy)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "metadata lack the format version"),
        ({"format_version": "1", "step": "1", "record": "{}"}, "lack the digest"),
        ({"format_version": "2", "step": "1", "record": "{}"}, "version is 2, newer than the 1 known"),
        ({"format_version": "x", "step": "1", "record": "{}"}, "invalid literal"),
    ],
)
def test_foreign_safetensors(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, metadata)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_newer_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 7)
    path = checkpoint.save(tmp_path, example(), keep=1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="version is 7, newer"):
        checkpoint.load(path)


class Planted:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    trace, folder = tmp_path / "executed", tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / "00000500.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Planted(trace))), lambda: torch.save(Planted(trace), path)):
        write()
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
        with pytest.warns(UserWarning, match="passed over"), pytest.raises(CheckpointError):
            checkpoint.load(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Planted(trace)))
    assert trace.exists()  # It would have.


def test_new_runs(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    checkpoint.new_run(run)
    checkpoint.new_run(run)  # Still empty.
    checkpoint.save(run, example(), keep=1)
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        checkpoint.new_run(run)
    files.write_json(tmp_path / "other" / "config.json", {})
    with pytest.raises(InputError, match="--resume"):
        checkpoint.new_run(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create the run's folder"):
        checkpoint.new_run(tmp_path / "file")
