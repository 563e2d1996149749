"""A saved policy put to use on a changed task: Acrobot, and then Acrobot with arms of twice the weight.

`acktr export` writes a policy alone. `acktr.load(file, env=...)` puts it into any environment with spaces of the same
shapes, where it predicts as it is or learns on. Its weights may also go into an agent with other settings: here one
whose updates move the policy by a third of the KL that the preset allows, since there is something to lose. What the
policy is worth shows beside an agent that starts from scratch: it hardly ever lifts the arm within its first steps.

    python transfer.py
    python transfer.py --source-timesteps 40000 --timesteps 3000    # a look
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import AcrobotEnv

import acktr


def heavier() -> gymnasium.Env[Any, Any]:
    """Acrobot with both arms of twice the mass, and the motor that it had."""
    env = gymnasium.make("Acrobot-v1")
    acrobot = env.unwrapped
    assert isinstance(acrobot, AcrobotEnv)
    acrobot.LINK_MASS_1 = acrobot.LINK_MASS_2 = 2.0
    return env


def score(agent: acktr.Agent) -> str:
    """Mean return of 30 episodes with the heavier arms, with its 95 % interval; -500 is never to arrive."""
    result = agent.evaluate(30, env=heavier)
    low, high = result["return_ci95"]
    return f"{result['return_mean']:6.1f} ({low:.0f} to {high:.0f})"


def main() -> None:
    """Train on the one, go on with the other."""
    parser = argparse.ArgumentParser(description="a saved policy on a changed task")
    parser.add_argument("--source-timesteps", type=int, default=60_000)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options: dict[str, Any] = {"seed": arguments.seed, "num_threads": 1, "vectorization": "sync"}

    source = acktr.ACKTR("Acrobot-v1", **options).learn(arguments.source_timesteps)
    print(f"Acrobot-v1 after {arguments.source_timesteps} steps: {source.evaluate(30)['return_mean']:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, file = Path(folder, "agent.safetensors"), Path(folder, "policy.safetensors")
        source.save(checkpoint)
        export = [sys.executable, "-m", "acktr", "export", str(checkpoint), "-o", str(file)]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        loaded = acktr.load(file, env=heavier)

    careful = acktr.ACKTR(heavier, max_kl=1e-3, max_measured_kl=1e-3, **options)
    careful.policy.load_state_dict(loaded.policy.state_dict())
    scratch = acktr.ACKTR(heavier, **options)
    print(f"heavier arms, and {arguments.timesteps} steps with them:")
    print(f"  the old policy as it is      {score(loaded)}")
    print(f"  the old policy, learning on  {score(careful.learn(arguments.timesteps))}")
    print(f"  from scratch                 {score(scratch.learn(arguments.timesteps))}")


if __name__ == "__main__":
    main()
