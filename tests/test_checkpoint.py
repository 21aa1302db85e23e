"""Checkpoints: to the bit, whole whatever happens, refused when anything is off."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_pg.checkpoint import (
    fingerprint,
    folders,
    load_checkpoint,
    load_optimizer_tensors,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from rlhf_pg.errors import CheckpointError

Usage = namedtuple("Usage", "total used free")


def groups(seed: float = 0.0) -> dict[str, dict[str, Tensor]]:
    return {
        "policy": {"w": torch.arange(6, dtype=torch.float32).reshape(2, 3) + seed, "b": torch.full((3,), seed)},
        "optimizer": {"w/exp_avg": torch.ones(2, 3), "w/step": torch.tensor(7.0)},
    }


def save(run: Path, step: int, keep_last: int = 9, seed: float | None = None) -> Path:
    return save_checkpoint(run, step, groups(float(step) if seed is None else seed), {"step": step}, keep_last)


def no_warning(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    flat_a, flat_b = (x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(flat_a, flat_b)


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_tensors_come_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 1e3
    tensors = {"dense": values.to(dtype), "scalar": torch.tensor(3).to(dtype), "empty": torch.zeros(0, 4).to(dtype)}
    tensors["transposed"] = tensors["dense"].T
    if dtype.is_floating_point:
        tensors["odd"] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-8]).to(dtype)
    path = save_checkpoint(tmp_path, 1, {"policy": tensors, "value": {}}, {}, 2)
    loaded, _ = load_checkpoint(path)
    assert set(loaded) == {"policy", "value"}
    assert loaded["value"] == {}
    assert set(loaded["policy"]) == set(tensors)
    for name, tensor in tensors.items():
        assert same_bits(loaded["policy"][name], tensor), name


def test_tensors_that_share_memory_are_both_saved(tmp_path: Path) -> None:
    embedding = torch.randn(4, 3)
    path = save_checkpoint(
        tmp_path, 1, {"policy": {"embed": embedding, "head": embedding, "part": embedding[1:]}}, {}, 1
    )
    loaded = load_checkpoint(path)[0]["policy"]
    assert torch.equal(loaded["embed"], embedding)
    assert torch.equal(loaded["head"], embedding)
    assert torch.equal(loaded["part"], embedding[1:])


def test_loaded_tensors_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    load_checkpoint(path)[0]["policy"]["w"].add_(100.0)
    assert newest_checkpoint(tmp_path, no_warning) == path


def test_floats_of_the_state_come_back_to_the_bit(tmp_path: Path) -> None:
    state = {"kl": 0.1 + 0.2, "tiny": 5e-324, "huge": 1.7976931348623157e308, "negative_zero": -0.0, "none": None,
             "nested": {"list": [1, 2.5, "é\u202e"], "int": 2**63}}  # fmt: skip
    loaded = load_checkpoint(save_checkpoint(tmp_path, 3, groups(), state, 1))[1]
    assert loaded == state
    assert math.copysign(1, loaded["negative_zero"]) == -1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_state_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, bad: float) -> None:
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 2, groups(), {"a": [bad]}, 1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]


def test_the_folder_holds_safetensors_and_json_only(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    assert path == tmp_path / "checkpoints" / "step-000100"
    assert sorted(os.listdir(path)) == ["manifest.json", "optimizer.safetensors", "policy.safetensors", "state.json"]


# Which are kept, and which is the newest


def test_keep_last_deletes_older_ones_and_left_overs(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    left_over = tmp_path / "checkpoints" / ".step-000012.tmp-1"
    left_over.mkdir()
    save(tmp_path, 20, keep_last=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-000015", "step-000020"]
    save(tmp_path, 25, keep_last=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000025"]


def test_a_later_damaged_one_is_no_reason_to_delete_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 10)
    damaged = save(tmp_path, 20)
    (damaged / "manifest.json").unlink()
    resumed = save(tmp_path, 15, keep_last=1)
    warnings: list[str] = []
    assert newest_checkpoint(tmp_path, warnings.append) == resumed
    assert "step-000020" in warnings[0]


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 10, seed=1.0)
    path = save(tmp_path, 10, seed=2.0)
    assert load_checkpoint(path)[0]["policy"]["b"].tolist() == [2.0, 2.0, 2.0]
    assert os.listdir(tmp_path / "checkpoints") == ["step-000010"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    aside = path.with_name(".step-000010.old-123")
    path.rename(aside)
    assert newest_checkpoint(tmp_path, no_warning) == aside
    assert load_checkpoint(aside)[1] == {"step": 10}
    assert save(tmp_path, 10) == path
    assert os.listdir(tmp_path / "checkpoints") == ["step-000010"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    save(tmp_path, 999_999)
    newest = save(tmp_path, 1_000_000)
    assert newest_checkpoint(tmp_path, no_warning) == newest


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, no_warning) is None
    (tmp_path / "checkpoints" / ".step-000001.tmp-1").mkdir(parents=True)
    assert newest_checkpoint(tmp_path, no_warning) is None


# Damage


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_damage_falls_back_to_the_older_one_with_a_warning(tmp_path: Path, name: str, damage: Any) -> None:
    older, newer = save(tmp_path, 10), save(tmp_path, 20)
    damage(newer / name)
    warnings: list[str] = []
    assert newest_checkpoint(tmp_path, warnings.append) == older
    assert len(warnings) == 1
    assert str(newer) in warnings[0]
    assert name in warnings[0]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_checkpoint(newer)


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    for step in (10, 20):
        flip_a_bit(save(tmp_path, step) / "state.json")
    warnings: list[str] = []
    with pytest.raises(CheckpointError, match="All 2 checkpoints"):
        newest_checkpoint(tmp_path, warnings.append)
    assert len(warnings) == 2


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    (path / "policy.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        load_checkpoint(path)


def edit_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    edit_manifest(path, format=99)
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)


@pytest.mark.parametrize("files", [{}, [], {"../state.json": {"sha256": "", "bytes": 1}}, {"state.json": {}}, 3])
def test_a_manifest_that_lists_nonsense_is_refused(tmp_path: Path, files: Any) -> None:
    path = save(tmp_path, 10)
    edit_manifest(path, files=files)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "step-000001")


# Disk full, and kills


def test_space_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 2**20, 2**20))
    with pytest.raises(CheckpointError, match=r"needs 16 MiB and .* has 1 MiB free"):
        save(tmp_path, 20, keep_last=1)
    assert newest_checkpoint(tmp_path, no_warning) == older
    assert os.listdir(older.parent) == ["step-000010"]


@pytest.mark.parametrize("step", [10, 20])
@pytest.mark.parametrize("writes_before", [0, 1])
def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, writes_before: int
) -> None:
    older = save(tmp_path, 10)
    real, calls = folders.save_file, 0

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > writes_before:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, step, keep_last=1, seed=5.0)
    assert newest_checkpoint(tmp_path, no_warning) == older
    assert load_checkpoint(older)[0]["policy"]["b"].tolist() == [10.0] * 3
    assert os.listdir(older.parent) == ["step-000010"]


SAVER = """
import sys
from pathlib import Path
import torch
from rlhf_pg.checkpoint import save_checkpoint
run = Path(sys.argv[1])
for i in range(10_000):
    step = 1 + i // 2  # each step twice, so that replacing is interrupted too
    save_checkpoint(run, step, {"policy": {"w": torch.full((300_000,), float(step))}}, {"step": step}, 2)
    print(step, flush=True)
"""


def test_a_kill_while_writing_leaves_the_previous_one_whole(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    chance = random.Random(0)
    for attempt in range(5):
        run = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", SAVER, str(run)], stdout=subprocess.PIPE, text=True, cwd=root
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.1))
            process.kill()
            said = [first, *process.stdout.readlines()]
        newest = newest_checkpoint(run, no_warning)
        assert newest is not None
        loaded, state = load_checkpoint(newest)
        assert state["step"] >= int(said[-1])
        assert loaded["policy"]["w"].unique().tolist() == [float(state["step"])]
        save_checkpoint(run, 50_000, groups(), {}, 1)
        assert os.listdir(run / "checkpoints") == ["step-050000"]


# Fingerprints


def test_fingerprint_ignores_order_and_layout_only() -> None:
    a, b = torch.randn(3, 4), torch.randn(2).to(torch.bfloat16)
    base = fingerprint([("a", a), ("b", b)])
    assert base == fingerprint([("b", b), ("a", a)])
    assert base == fingerprint([("a", a.T.contiguous().T), ("b", b.clone())])
    assert len(base) == 64
    for other in (
        [("a", a), ("c", b)],
        [("a", a), ("b", b.float())],
        [("a", a.reshape(4, 3)), ("b", b)],
        [("a", a)],
        [("a", a), ("b", b.view(torch.int16))],
    ):
        assert fingerprint(other) != base


def test_fingerprint_sees_a_single_bit() -> None:
    bits = torch.zeros(8, dtype=torch.int16)
    base = fingerprint([("w", bits.view(torch.bfloat16))])
    bits[5] = -32768  # minus zero
    assert fingerprint([("w", bits.view(torch.bfloat16))]) != base


def test_fingerprint_of_known_bytes() -> None:
    import hashlib

    header = '["w", "torch.float32", []]'
    expected = hashlib.sha256(f"{len(header)}:{header}".encode() + b"\x00\x00\x80\x3f").hexdigest()
    assert fingerprint([("w", torch.tensor(1.0))]) == expected


# Optimizer state


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.first = nn.Linear(3, 4)
        self.idle = nn.Parameter(torch.ones(2))
        self.to(dtype)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


def update(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).to(net.idle.dtype)
    optimizer.zero_grad()
    net.first(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_adamw_goes_on_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    net = Net(dtype)
    optimizer = torch.optim.AdamW(net.trained(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        update(net, optimizer, seed)
    tensors = {"policy": dict(net.state_dict()), "optimizer": optimizer_tensors(optimizer, net.named_parameters())}
    path = save_checkpoint(tmp_path, 3, tensors, {}, 1)

    again = Net(dtype)
    resumed = torch.optim.AdamW(again.trained(), lr=0.1, weight_decay=0.1)
    loaded, _ = load_checkpoint(path)
    again.load_state_dict(loaded["policy"])
    load_optimizer_tensors(resumed, again.named_parameters(), loaded["optimizer"])
    for p, q in zip(net.trained(), again.trained(), strict=True):
        for name, value in optimizer.state[p].items():
            assert same_bits(resumed.state[q][name], value)
    for seed in range(3, 6):
        update(net, optimizer, seed)
        update(again, resumed, seed)
    assert fingerprint(net.named_parameters()) == fingerprint(again.named_parameters())


def test_a_parameter_without_a_gradient_so_far_starts_from_zeros() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.trained())
    flat = optimizer_tensors(optimizer, net.named_parameters())
    names = ("first.weight", "first.bias", "idle")
    assert set(flat) == {f"{name}/{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")}
    assert all(not tensor.any() for tensor in flat.values())
    assert len(optimizer.state) == 0


def test_loading_does_not_share_memory_with_what_was_given() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.trained())
    flat = optimizer_tensors(optimizer, net.named_parameters())
    load_optimizer_tensors(optimizer, net.named_parameters(), flat)
    update(net, optimizer, 0)
    assert all(not tensor.any() for tensor in flat.values())


def test_optimizer_entries_that_do_not_fit_are_refused_and_change_nothing() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.trained())
    update(net, optimizer, 0)
    flat = optimizer_tensors(optimizer, net.named_parameters())
    before = {name: tensor.clone() for name, tensor in flat.items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in flat.items()}

    missing = {k: v for k, v in zeros.items() if k != "first.bias/exp_avg"}
    with pytest.raises(CheckpointError, match=r"1 entries missing \['first.bias/exp_avg'\]"):
        load_optimizer_tensors(optimizer, net.named_parameters(), missing)
    with pytest.raises(CheckpointError, match=r"1 of no parameter \['gone/step'\]"):
        load_optimizer_tensors(optimizer, net.named_parameters(), zeros | {"gone/step": torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=r"idle/exp_avg has shape \(3,\) and its parameter needs \(2,\)"):
        load_optimizer_tensors(optimizer, net.named_parameters(), zeros | {"idle/exp_avg": torch.zeros(3)})
    after = optimizer_tensors(optimizer, net.named_parameters())
    assert all(same_bits(after[name], before[name]) for name in before)


def test_only_adamw_with_named_parameters_is_saved() -> None:
    net = Net()
    momentum = torch.optim.SGD(net.trained(), lr=0.1, momentum=0.9)
    update(net, momentum, 0)
    with pytest.raises(CheckpointError, match="only AdamW's"):
        optimizer_tensors(momentum, net.named_parameters())
    with pytest.raises(CheckpointError, match="1 parameters of the optimizer are not among"):
        optimizer_tensors(torch.optim.AdamW(net.trained()), net.first.named_parameters("first"))
