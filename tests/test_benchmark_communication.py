"""What processes send one another is what the model of the documentation says, byte for byte."""

import communication
import pytest


@pytest.mark.parametrize(
    "name", ["BreakoutNoFrameskip-v4, kfac", "HalfCheetah-v5, ekfac", "HalfCheetah-v5, kfac, owner"]
)
def test_the_bytes_of_gradients_factors_and_inverses_are_those_of_the_model(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # scripts find their neighbours
    found = communication.in_two_processes(communication.CASES[name], updates=6)
    measured = {kind: found["measured"].get(kind, 0) for kind in communication.KINDS}
    assert measured == found["model"]
    assert found["measured"]["figures"] < 2000 * found["updates"]
