"""Ways that are taken for their speed alone give the results of the plain ones."""

import os
import subprocess
import sys

import pytest
import torch
from host_reads import let_looks_be_free
from oracles import flat_parameters
from small_models import classifier, train_step

from acktr.agents.observations import take_rows
from acktr.kfac import KFAC, products
from acktr.kfac.averages import RunningAverage, Share
from acktr.kfac.products import product
from acktr.kfac.statistics import second_moment, weighted_rows


@pytest.mark.parametrize("left_transposed", [False, True])
@pytest.mark.parametrize("right_transposed", [False, True])
@pytest.mark.parametrize("width", [30, 80])
def test_product_equals_the_matrix_product_in_float32_for_every_layout(
    left_transposed: bool, right_transposed: bool, width: int
) -> None:
    assert 30 <= products._NARROW < 80
    left = torch.randn((1, 90, width) if left_transposed else (1, width, 90), dtype=torch.float32)
    right = torch.randn((1, width, 90) if right_transposed else (1, 90, width), dtype=torch.float32)
    left = left.transpose(1, 2) if left_transposed else left
    right = right.transpose(1, 2) if right_transposed else right
    assert left.shape[1] * left.shape[2] * right.shape[2] > products._SMALLEST
    with torch.no_grad():
        found = product(left, right)
    # float32 sums of 90 terms: a kernel that rounds its inputs to bfloat16 is a hundred times further off
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_product_keeps_float64_and_groups(groups: int) -> None:
    left, right = torch.randn(groups, 64, 48, dtype=torch.float64), torch.randn(groups, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(product(left, right), left @ right)


def test_product_keeps_the_graph_where_one_is_wanted() -> None:
    left = torch.randn(1, 64, 64, dtype=torch.float32, requires_grad=True)
    product(left, left).sum().backward()
    assert left.grad is not None


def test_a_bias_column_is_the_same_whether_rows_or_the_result_are_widened() -> None:
    rows, weights = torch.randn(6, 1, 1, 5, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    weights[2] = 0
    many = second_moment(rows, weights, homogeneous=True)  # 6 rows of 5: the result is widened
    split = [second_moment(rows[i : i + 3], weights[i : i + 3], homogeneous=True) for i in (0, 3)]  # 3 rows: they are
    torch.testing.assert_close(split[0] + split[1], many, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [[1.0, 0.0, 0.25, 0.0, 2.0], [1.0, 0.0, 1.0, 0.0, 1.0]])
def test_weighted_rows_are_the_same_where_weights_may_be_looked_at(
    weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, given = torch.randn(5, 2, 1, 3), torch.tensor(weights)
    rows[1, 0, 0, 2], rows[3] = torch.nan, torch.inf  # what a row of weight 0 holds is nobody's business
    before = rows.clone()
    found = []
    for looks in (True, False):
        let_looks_be_free(looks, monkeypatch)
        found.append(weighted_rows(rows, given))
        found.append(weighted_rows(rows.clone(), given, in_place=True))
    torch.testing.assert_close(rows, before, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(one, found[0]) for one in found)
    torch.testing.assert_close(found[0][[0, 2]], rows[[0, 2]] * given[[0, 2]].sqrt()[:, None, None, None])


@pytest.mark.parametrize("channels", [1, 4])
def test_frames_are_taken_whole_and_keep_their_channels_last(channels: int) -> None:
    frames = torch.randint(0, 255, (6, 5, 7, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    rows = torch.tensor([4, 0, 4, 5])
    taken = take_rows({"frames": frames, "vector": frames[:, :, 0, 0]}, rows)
    assert isinstance(taken, dict)
    assert torch.equal(taken["frames"], frames[rows])
    assert taken["frames"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(taken["vector"], frames[rows, :, 0, 0])


def test_running_average_in_place_equals_the_debiased_weighted_mean() -> None:
    average, decay = RunningAverage(), 0.9
    totals = [torch.randn(4, 4, dtype=torch.float64) for _ in range(5)]
    counts = [torch.tensor(float(n), dtype=torch.float64) for n in (3, 0, 8, 2, 5)]
    totals[3][1, 1] = torch.nan  # neither the empty batch nor this one counts
    for total, count in zip(totals, counts, strict=True):
        average.update(total, count, Share.of(decay))
    shares = torch.tensor([decay**2, 0, decay, 0, 1], dtype=torch.float64)  # a batch that counts for nothing ages none
    kept = (0, 2, 4)
    wanted = torch.stack([shares[k] * totals[k] / counts[k] for k in kept]).sum(0) / shares.sum()
    assert average.value is not None
    torch.testing.assert_close(average.value, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_kl", [1e-3, None])
def test_steps_that_may_not_be_looked_at_equal_those_that_may(
    max_kl: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU tensor arithmetic decides what a CPU looks at: sound batches, a NaN, and steps taken back."""
    ends = []
    for looks in (True, False):
        let_looks_be_free(looks, monkeypatch)
        model = classifier()
        optimizer = KFAC(model, lr=0.1, max_kl=max_kl, inverse_interval=1)
        torch.manual_seed(1)
        for number in range(6):
            inputs = torch.randn(9, 3)
            if number == 2:
                inputs[4, 1] = torch.nan
            train_step(model, optimizer, inputs)
            optimizer.contract(torch.tensor([1.0, 0.5, 1.0, 0.0, 0.25, torch.nan][number]))
        ends.append((flat_parameters(model), optimizer.skipped.clone(), optimizer.kl_predicted.clone()))
    assert float(ends[0][1]) == 3  # the NaN, and two taken back whole
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_the_command_line_lets_idle_threads_sleep_before_torch_is_loaded(chosen: str | None) -> None:
    code = (
        "import os, sys\n"
        "from acktr import process\n"
        "process.tune()\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    if chosen is not None:
        environment["OMP_WAIT_POLICY"] = chosen
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["PASSIVE", "20000"] if chosen is None else [chosen, "None"])


def test_a_training_step_and_its_checkpoint_do_not_load_the_compiler() -> None:
    """torch's optimizers import it where they are first used, which takes 1.5 s at the start of a run."""
    code = """
import sys, torch
from torch.distributions import Categorical
from acktr.kfac import KFAC, Fisher
model = torch.nn.Linear(2, 2)
optimizer = KFAC(model)
with optimizer.capture():
    logits = model(torch.randn(4, 2))
optimizer.update_statistics(Fisher(distribution=Categorical(logits=logits)))
optimizer.zero_grad()
logits.square().mean().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
