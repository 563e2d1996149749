"""K-FAC for PyTorch as an optimizer of its own: this package imports torch and nothing else of the project."""

from acktr.kfac.distributed import LostRankError, Ranks
from acktr.kfac.distributions import MultiCategorical
from acktr.kfac.errors import BlockError, block_errors
from acktr.kfac.levenberg_marquardt import LevenbergMarquardt, StepReport
from acktr.kfac.metrics import EmpiricalFisher, Fisher, GaussNewton, Joint, Metric, sample
from acktr.kfac.noisy import NoisyKFAC
from acktr.kfac.optimizer import KFAC
from acktr.kfac.supervised import batch_size, iterate_average
from acktr.kfac.trust_region import mean_kl, weighted_mean

__all__ = [
    "KFAC",
    "BlockError",
    "EmpiricalFisher",
    "Fisher",
    "GaussNewton",
    "Joint",
    "LevenbergMarquardt",
    "LostRankError",
    "Metric",
    "MultiCategorical",
    "NoisyKFAC",
    "Ranks",
    "StepReport",
    "batch_size",
    "block_errors",
    "iterate_average",
    "mean_kl",
    "sample",
    "weighted_mean",
]
