"""Damped inverses: by blocks as exact as LAPACK's, and looked at from the host once for all of a refresh."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative_error
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from acktr.kfac import KFAC, Fisher, GaussNewton, Joint, triangular
from acktr.kfac.solvers import damped_cholesky, damped_inverse, settled
from acktr.kfac.triangular import blocks_pay, invert_by_blocks

pytestmark = pytest.mark.usefixtures("one_thread")
CONDITION = {torch.float32: 1e6, torch.float64: 1e12}
SPECTRA = ["geometric", "one small", "one large", "half small"]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """As in a refresh; `product` takes its fast kernel only so."""
    with torch.no_grad():
        yield


def blocks(panel: int) -> Any:
    """Panels and strips of that width and twice it, so that small matrices have many."""
    return mock.patch.multiple(triangular, _PANEL=panel, _STRIP=2 * panel)


def inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    work = matrix.clone()
    sound = invert_by_blocks(work)
    return work, sound


def rotated(width: int, condition: float, spectrum: str, seed: int) -> Tensor:
    """(1, n, n) float64 with random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    values = torch.ones(width, dtype=torch.float64)
    match spectrum:
        case "geometric":
            values = condition ** -torch.linspace(0, 1, width, dtype=torch.float64)
        case "one small":
            values[-1] = 1 / condition
        case "one large":
            values[1:] = 1 / condition
        case "half small":
            values[width // 2 :] = 1 / condition
    return symmetric((basis * values) @ basis.T)


def smooth(width: int, condition: float) -> Tensor:
    """(1, n, n) float64, the covariance of a smooth process: its leading blocks are as ill-conditioned as itself."""
    distance = torch.arange(width, dtype=torch.float64)
    kernel = torch.exp(-(((distance[:, None] - distance) / 20) ** 2))
    return symmetric(kernel + kernel.sum(0).max() / condition * torch.eye(width, dtype=torch.float64))


def activations(width: int, condition: float) -> Tensor:
    """(1, n, n) float64, the damped second moment of a quarter as many rows out of a ReLU."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(width // 4, width, generator=generator, dtype=torch.float64).relu()
    moment = rows.T @ rows / len(rows)
    return symmetric(moment + torch.linalg.matrix_norm(moment, 2) / condition * torch.eye(width, dtype=torch.float64))


def symmetric(matrix: Tensor) -> Tensor:
    return ((matrix + matrix.T) / 2)[None]


def residual(matrix: Tensor, found: Tensor) -> float:
    """Frobenius norm of A X - I, in float64."""
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64)
    return float(torch.linalg.matrix_norm(matrix.double() @ found.double() - identity).max())


# --- inverses by blocks ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 150),
    groups=st.integers(1, 3),
    panel=st.sampled_from([4, 13, 32, 128]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    spectrum=st.sampled_from(SPECTRA),
    seed=st.integers(0, 1000),
)
def test_the_inverse_by_blocks_is_the_inverse_for_every_size_and_spectrum(
    width: int, groups: int, panel: int, dtype: torch.dtype, spectrum: str, seed: int
) -> None:
    condition = CONDITION[dtype]
    exact = torch.cat([rotated(width, condition, spectrum, seed + group) for group in range(groups)])
    matrix = exact.to(dtype)
    with blocks(panel), torch.no_grad():
        found, sound = inverse(matrix)
    # as far as the matrix's own rounding lets any algorithm come, some of it through eigenvalues near 1 / condition
    allowed = 5 * condition * torch.finfo(dtype).eps
    wanted = torch.linalg.inv(matrix.double())
    assert sound.tolist() == [True] * groups
    assert all(relative_error(one, other) < allowed for one, other in zip(found.double(), wanted, strict=True))
    assert residual(matrix, found) < allowed * width**0.5
    assert torch.equal(found, found.mT)
    assert found.is_contiguous()


MATRICES: list[tuple[str, Callable[[int, float], Tensor], float]] = [
    *((name, lambda width, condition, name=name: rotated(width, condition, name, 0), 3.0) for name in SPECTRA),
    ("activations", activations, 3.0),
    ("smooth", smooth, 8.0),
]


@pytest.mark.parametrize("dtype", CONDITION)
@pytest.mark.parametrize(("make", "factor"), [matrix[1:] for matrix in MATRICES], ids=[one[0] for one in MATRICES])
def test_the_residual_of_the_inverse_by_blocks_is_that_of_lapack(
    make: Callable[[int, float], Tensor], factor: float, dtype: torch.dtype
) -> None:
    """Products with explicit inverses of the diagonal blocks come to 10 to 10^7 times LAPACK's residual."""
    matrix = make(350, CONDITION[dtype]).to(dtype)
    with blocks(32):
        found, sound = inverse(matrix)
    plain = torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0])
    assert bool(sound.all())
    assert residual(matrix, found) < factor * residual(matrix, plain)


@pytest.mark.parametrize("dtype", CONDITION)
@pytest.mark.parametrize("width", [3, 128, 129, 600])
def test_equal_matrices_have_the_same_inverse_to_the_bit_whatever_lies_below_the_diagonal(
    width: int, dtype: torch.dtype
) -> None:
    matrix = rotated(width, 100.0, "geometric", 0).to(dtype)
    junk = matrix.triu() + torch.full_like(matrix, torch.nan).tril(-1)
    first, second = inverse(matrix)[0], inverse(junk)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("spoiled", ["indefinite", "zero", "nan"])
@pytest.mark.parametrize("position", [0, 40, 99])
def test_only_what_cannot_be_factored_is_said_to_be_unsound(spoiled: str, position: int) -> None:
    matrix = torch.cat([rotated(100, 10.0, "geometric", seed) for seed in range(3)])
    matrix[1, position, :] = matrix[1, :, position] = 0
    matrix[1, position, position] = {"indefinite": -1.0, "zero": 0.0, "nan": torch.nan}[spoiled]
    with blocks(16):
        found, sound = inverse(matrix)
    assert sound.tolist() == [True, False, True]
    torch.testing.assert_close(found[[0, 2]], torch.linalg.inv(matrix[[0, 2]]))


def test_blocks_are_for_wide_single_matrices_in_the_full_precision_of_float32() -> None:
    onednn: Any = torch.backends.mkldnn
    if not onednn.is_available():
        pytest.skip("torch without oneDNN")
    width = triangular._SMALLEST
    assert blocks_pay(torch.empty(1, width, width))
    assert not blocks_pay(torch.empty(1, width - 1, width - 1))
    assert not blocks_pay(torch.empty(2, width, width))
    assert not blocks_pay(torch.empty(1, width, width, dtype=torch.float64))
    assert not blocks_pay(torch.empty(1, width, width, device="meta"))
    before = onednn.matmul.fp32_precision
    try:
        onednn.matmul.fp32_precision = "bf16"
        assert not blocks_pay(torch.empty(1, width, width))
    finally:
        onednn.matmul.fp32_precision = before


# --- the guard ladder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smallest", [1, 1 << 20], ids=["blocks", "lapack"])
@pytest.mark.parametrize("width", [5, 300])
def test_a_damped_inverse_is_symmetric_with_rows_first_and_leaves_its_matrix_alone(
    width: int, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triangular, "_SMALLEST", smallest)
    matrix = rotated(width, 1e3, "geometric", 0).float()
    before = matrix.clone()
    ((found, retries),) = settled([damped_inverse(matrix, torch.full((1,), 0.5))])
    assert retries == 0
    assert found is not None
    assert torch.equal(found, found.mT)
    assert found.is_contiguous()
    wanted = torch.linalg.inv(matrix.double() + 0.5 * torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(found, wanted.float())
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("smallest", [1, 1 << 20], ids=["blocks", "lapack"])
def test_a_slightly_indefinite_wide_matrix_is_mended_by_jitter(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangular, "_SMALLEST", smallest)
    matrix = torch.eye(300)[None].clone()
    matrix[0, 290, 290] = -1e-5
    ((found, retries),) = settled([damped_inverse(matrix, torch.zeros(1))])
    assert retries == 2  # a jitter of 1e-6 is too little
    assert found is not None
    assert float(found[0, 290, 290]) == pytest.approx(1 / 9e-5, rel=1e-2)


def test_attempts_settled_together_come_out_as_one_by_one() -> None:
    def attempts() -> list[Any]:
        good, bad = torch.eye(3)[None] * 2, torch.diag(torch.tensor([1.0, -1e-5, 1.0]))[None]
        hopeless = torch.full((1, 2, 2), torch.nan)
        zero = torch.zeros(1)
        return [damped_inverse(bad, zero), damped_cholesky(good, zero), damped_inverse(hopeless, zero)]

    together = settled(attempts())
    apart = [settled([attempt])[0] for attempt in attempts()]
    assert [retries for _, retries in together] == [retries for _, retries in apart] == [2, 0, 4]
    assert together[2][0] is None
    for one, other in zip(together[:2], apart[:2], strict=True):
        assert one[0] is not None
        assert other[0] is not None
        assert torch.equal(one[0], other[0])
    assert settled([]) == []


# --- host reads ------------------------------------------------------------------------------------------------


class Actor(nn.Module):
    """A block of every sort: convolution, normalisation, linear layers, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.torso = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 8), nn.Tanh()
        )
        self.mean = nn.Linear(8, 3)
        self.value = nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.zeros(3))


def prepared(model: Actor, optimizer: KFAC, kind: Any, reads: HostReads | None = None) -> None:
    """All of an update but the step; `reads` watches `update_statistics`."""
    with torch.enable_grad():
        with optimizer.capture():
            features = model.torso(torch.randn(8, 2, 6, 6))
            mean, values = model.mean(features), model.value(features).squeeze(-1)
        scale = model.log_std.exp().expand_as(mean)
        distribution = Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
        metric = Joint(Fisher(distribution=distribution, kind=kind), GaussNewton(values=values, kind=kind))
        if reads is None:
            optimizer.update_statistics(metric)
        else:
            with reads:
                optimizer.update_statistics(metric)
        optimizer.zero_grad()
        loss = distribution.log_prob(mean.detach() + 1).mean() + values.square().mean()
        torch.autograd.backward(loss)


@pytest.mark.parametrize("options", [{}, {"bias": "separate"}, {"curvature": "kfoc"}, {"curvature": "full"}])
@pytest.mark.parametrize("kind", ["sampled", "exact"])
def test_a_refresh_of_all_blocks_reads_once_and_an_update_without_one_never(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Actor()
    optimizer = KFAC(model, inverse_interval=1000, **options)
    reads = HostReads(monkeypatch)
    prepared(model, optimizer, kind, reads)
    assert reads.found == []
    with reads:
        optimizer.step()
    assert optimizer.estimate.refresh_count == len(optimizer.units) > 5
    assert len(reads.found) == 1
    optimizer.steps = 20_001  # no longer young: a unit is due every hundred steps or so, and not in this one
    prepared(model, optimizer, kind, reads)
    with reads:
        optimizer.step()
    assert optimizer.estimate.refresh_count == len(optimizer.units)
    assert len(reads.found) == 1
    assert optimizer.estimate.retry_count == 0


@pytest.mark.parametrize(("fails", "retries", "stale"), [("first", 1, 0), ("all", 4, 1)])
def test_a_factor_that_fails_in_a_refresh_of_many_leaves_the_others_as_they_would_be(
    fails: str, retries: int, stale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = torch.linalg.cholesky_ex, []

    def flaky(matrix: Tensor) -> Any:
        factor, info = original(matrix)
        if matrix.shape[-1] == 65:  # of the first linear layer's inputs alone
            seen.append(matrix.dtype)
            if fails == "all" or len(seen) == 1:
                return factor * torch.nan, torch.ones_like(info)
        return factor, info

    after = []
    for spoil in (False, True):
        torch.manual_seed(0)
        model = Actor()
        optimizer = KFAC(model)
        prepared(model, optimizer, "exact")
        optimizer.refresh()
        before = [state_of(unit.block) for unit in optimizer.units]
        prepared(model, optimizer, "exact")
        if spoil:
            monkeypatch.setattr(torch.linalg, "cholesky_ex", flaky)
        optimizer.refresh()
        after.append({unit.name: state_of(unit.block) for unit in optimizer.units})
    index = next(index for index, unit in enumerate(optimizer.units) if unit.name == "torso.4")
    plain, spoiled = (states.pop("torso.4") for states in after)
    assert (optimizer.estimate.retry_count, optimizer.estimate.stale_count) == (retries, stale)
    assert optimizer.estimate.refresh_count == 2 * len(optimizer.units)
    for name, state in after[0].items():
        assert all(torch.equal(one, other) for one, other in zip(state, after[1][name], strict=True))
    if fails == "all":  # the pair belongs together: the good factor's new inverse is not taken either
        assert all(torch.equal(one, other) for one, other in zip(spoiled, before[index], strict=True))
    else:
        torch.testing.assert_close(spoiled, plain, rtol=1e-3, atol=1e-4)
        assert not torch.equal(spoiled[0], before[index][0])


def state_of(block: Any) -> list[Tensor]:
    """What a block's inverse is made of."""
    state = block.state_dict()
    return [state[key].clone() for key in ("left", "right", "factor") if state.get(key) is not None]
