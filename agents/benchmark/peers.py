"""Trains one peer of stable-baselines3 or sb3-contrib in this process and keeps its curve as `metrics.csv`.

    python -P -m acktr.agents.benchmark.peers ALGORITHM ENV SEED TIMESTEPS FOLDER

Returns are raw and of whole games, by the package's own Monitor, which stands below its wrappers. A run that was
interrupted starts anew: these packages keep their state as pickles, which this one does not read.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from acktr.agents.benchmark.evaluations import EPISODES, games_seed
from acktr.agents.benchmark.peer_settings import peer_record, published
from acktr.agents.files import write_text_atomically
from acktr.agents.metrics_file import MetricsFile
from acktr.agents.run_folder import (
    COMMAND_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    SETTINGS_FILE,
    VERSIONS_FILE,
    provenance,
)
from acktr.envs.atari import FRAME_SKIP, FRAME_STACK
from acktr.envs.make import family

ROWS = 500
"""Of a run's metrics.csv, about."""

_PACKAGES = ("stable-baselines3", "sb3-contrib")
_OF_POLICY = ("log_std_init", "ortho_init", "activation", "hidden_sizes", "rmsprop_tf")


def train(algorithm: str, env: str, seed: int, total_timesteps: int, folder: Path) -> None:
    """Train one peer from the beginning.

    Args:
        algorithm: "sb3-a2c", "sb3-ppo" or "sb3-trpo".
        env: the environment's id.
        seed: of the run.
        total_timesteps: environment steps.
        folder: for settings.yaml, command.txt, versions.json, metrics.csv and, of the final policy, evaluation.json.
    """
    settings = published(algorithm, env)
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    recorded = peer_record(algorithm, env, seed, total_timesteps)
    write_text_atomically(folder / SETTINGS_FILE, yaml.safe_dump(recorded, sort_keys=False))
    words = [algorithm, env, str(seed), str(total_timesteps), folder.name]
    write_text_atomically(folder / COMMAND_FILE, f"python -P -m acktr.agents.benchmark.peers {' '.join(words)}\n")
    versions = provenance()
    versions["packages"] |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    write_text_atomically(folder / VERSIONS_FILE, json.dumps({"starts": [versions]}, indent=2, sort_keys=True) + "\n")
    environment = _environment(env, seed, settings)
    model = _model(algorithm, environment, seed, settings)
    with MetricsFile(folder / METRICS_FILE) as metrics:
        frames = FRAME_SKIP if family(env) == "atari" else 1
        model.learn(total_timesteps, callback=_recorder(metrics, total_timesteps, frames))
    result = _evaluation(model, environment, env, games_seed(seed), published(algorithm, env))
    write_text_atomically(folder / EVALUATION_FILE, json.dumps(result, indent=2, allow_nan=False) + "\n")
    environment.close()


def _evaluation(model: Any, trained_in: Any, env: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Full games of the final policy, in environments of their own with the observations' statistics of training."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

    environment = _environment(env, seed, settings)
    if isinstance(environment, VecNormalize):
        environment.training = environment.norm_reward = False
        sync_envs_normalization(trained_in, environment)
    kind = family(env)
    greedy = kind != "atari"
    played, _ = evaluate_policy(
        model, environment, n_eval_episodes=EPISODES, deterministic=greedy, return_episode_rewards=True
    )
    environment.close()
    returns = np.asarray(played)
    policy = "deterministic" if greedy else "stochastic"
    return {
        "env": env,
        "timesteps": model.num_timesteps,
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)),
        "returns": returns.tolist(),
        "protocol": {"family": kind, "policy": policy, "seed": seed, "num_envs": environment.num_envs},
    }


def _environment(env: str, seed: int, settings: dict[str, Any]) -> Any:
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

    number = settings.pop("num_envs", 1)
    if family(env) == "atari":
        # its wrappers skip the frames themselves
        games = make_atari_env(f"ale_py:{env}", number, seed=seed, env_kwargs={"frameskip": 1})
        return VecFrameStack(games, n_stack=FRAME_STACK)
    environment = make_vec_env(env, number, seed=seed)
    if settings.pop("normalize", False):
        return VecNormalize(environment, gamma=settings.get("gamma", 0.99))
    return environment


def _model(algorithm: str, environment: Any, seed: int, settings: dict[str, Any]) -> Any:
    from sb3_contrib import TRPO
    from stable_baselines3 import A2C, PPO

    kind = {"sb3-a2c": A2C, "sb3-ppo": PPO, "sb3-trpo": TRPO}[algorithm]
    images = len(environment.observation_space.shape) == 3
    given = {name: _scheduled(value) for name, value in settings.items() if name not in _OF_POLICY}
    return kind(
        "CnnPolicy" if images else "MlpPolicy",
        environment,
        seed=seed,
        device="auto" if images else "cpu",
        policy_kwargs=_policy(settings),
        **given,
    )


def _policy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What goes to the policy, under the names that it has there."""
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    made: dict[str, Any] = {name: settings[name] for name in ("log_std_init", "ortho_init") if name in settings}
    if "activation" in settings:
        made["activation_fn"] = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[settings["activation"]]
    if "hidden_sizes" in settings:
        made["net_arch"] = {"pi": settings["hidden_sizes"], "vf": settings["hidden_sizes"]}
    if settings.get("rmsprop_tf"):
        made |= {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    return made


def _scheduled(value: Any) -> Any:
    """`lin_x` as a function of the share of the run that is left."""
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    start = float(value.removeprefix("lin_"))
    return lambda left: start * left


def _recorder(metrics: MetricsFile, total_timesteps: int, frames: int) -> Any:
    """A callback that keeps the curve; `frames` to a decision, which are what the Monitor counts."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Recorder(BaseCallback):  # type: ignore[misc, unused-ignore]  # Any where it is not installed
        """Appends a row every so many steps, and one at the end."""

        def __init__(self) -> None:
            super().__init__()
            self.start = self.last = time.perf_counter()
            self.written = self.episodes = 0

        def _on_step(self) -> bool:
            self.episodes += sum("episode" in info for info in self.locals["infos"])
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps - self.written >= total_timesteps / ROWS:
                self._write()

        def _on_training_end(self) -> None:
            if self.num_timesteps > self.written:
                self._write()

        def _write(self) -> None:
            now = time.perf_counter()
            ended = self.model.ep_info_buffer or ()
            returns = np.array([episode["r"] for episode in ended])
            shown = {
                "return_mean": returns.mean(),
                "return_std": returns.std(),
                "length_mean": np.mean([episode["l"] for episode in ended]) / frames,
            }
            metrics.write(
                {
                    "timesteps": self.num_timesteps,
                    "wall_time": now - self.start,
                    "steps_per_second": (self.num_timesteps - self.written) / (now - self.last),
                    "episodes": self.episodes,
                    **(shown if ended else {}),
                }
            )
            self.written, self.last = self.num_timesteps, now

    return Recorder()


def main() -> None:
    """Train the peer that the arguments name."""
    algorithm, env, seed, total, folder = sys.argv[1:]
    train(algorithm, env, int(seed), int(total), Path(folder))


if __name__ == "__main__":
    main()
