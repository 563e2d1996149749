"""torch's Optimizer, without the compiler that it loads."""

import inspect

from torch.optim import Optimizer


class PlainOptimizer(Optimizer):
    """An `Optimizer` whose methods do not import `torch._dynamo` when they are first called.

    torch marks these four as not to be traced by `torch.compile`, by decorators that import the compiler: 1.5 s at the
    start of every training on a CPU. What they decorate is taken as it is.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
