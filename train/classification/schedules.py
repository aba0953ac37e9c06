"""Learning-rate schedules of the recipes, as factors of the initial rate for an epoch."""

import math


def sgdr(epoch: int, first_cycle: int = 10, cycle_factor: int = 2) -> float:
    """Return the factor of cosine annealing with warm restarts to zero (SGDR), in the given epoch.

    Args:
        epoch (`int`): Counted from 0.
        first_cycle (`int`, *optional*, defaults to 10): Epochs of the first cycle (T_0).
        cycle_factor (`int`, *optional*, defaults to 2): Each cycle is this many times longer than the one before
            (T_mult); with the defaults the rate restarts at epochs 10, 30 and 70 and epoch 149 ends a cycle.

    Source: Loshchilov and Hutter, arXiv 1608.03983, equation 5.
    """
    cycle = first_cycle
    while epoch >= cycle:
        epoch -= cycle
        cycle *= cycle_factor
    return (1 + math.cos(math.pi * epoch / cycle)) / 2


def warmup_linear(epoch: int, num_epochs: int, warmup_epochs: int = 4, final_factor: float = 0.005) -> float:
    """Return the factor of an exponential warm-up followed by a linear descent, in the given epoch.

    Args:
        epoch (`int`): Counted from 0.
        num_epochs (`int`): Epochs of the whole training, where the descent would reach `final_factor`.
        warmup_epochs (`int`, *optional*, defaults to 4): Epochs before the full rate is reached.
        final_factor (`float`, *optional*, defaults to 0.005): Where the descent leads.

    Source: the DCASE 2024 public code's fine-tuning of BEATs (four epochs up, 26 down).
    """
    if epoch < warmup_epochs:
        return math.exp(-5 * (1 - max(epoch, 0.5) / warmup_epochs) ** 2)
    descent = (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1)
    return 1 - (1 - final_factor) * min(descent, 1.0)
