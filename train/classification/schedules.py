"""Learning-rate schedules: the factor of the learning rate in each epoch or step."""

import math


FINAL_FACTOR = 0.005
"""Factor that the descent of [`warmup_linear`] leads to."""


def sgdr(epoch: int, first_cycle: int = 10, cycle_factor: int = 2) -> float:
    """Return the factor of SGDR: cosine annealing to zero with warm restarts.

    Source: Loshchilov and Hutter, arXiv 1608.03983, equation 5.

    Args:
        epoch (`int`): The epoch, counted from 0.
        first_cycle (`int`, *optional*, defaults to 10): Epochs of the first cycle (T_0).
        cycle_factor (`int`, *optional*, defaults to 2): Factor by which each cycle is longer than the previous one
            (T_mult). With the defaults, cycles end after 10, 30, 70 and 150 epochs.
    """
    cycle = first_cycle
    while epoch >= cycle:
        epoch -= cycle
        cycle *= cycle_factor
    return (1 + math.cos(math.pi * epoch / cycle)) / 2


def sgdr_ends(num_epochs: int, first_cycle: int = 10, cycle_factor: int = 2) -> list[int]:
    """Return the numbers of epochs around `num_epochs` after which a cycle of [`sgdr`] ends.

    Args:
        num_epochs (`int`): Number of epochs.
        first_cycle (`int`, *optional*, defaults to 10): As for [`sgdr`].
        cycle_factor (`int`, *optional*, defaults to 2): As for [`sgdr`].

    Returns:
        `list[int]`: The last end up to `num_epochs`, if there is one, and the next three.
    """
    ends, cycle = [first_cycle], first_cycle
    while len(ends) < 4 or ends[-3] <= num_epochs:
        cycle *= cycle_factor
        ends.append(ends[-1] + cycle)
    return ends[-4:]


def warmup_linear(epoch: int, num_epochs: int, warmup_epochs: int = 4) -> float:
    """Return the factor of an exponential warm-up followed by a linear descent.

    Source: the fine-tuning of BEATs in the public code of DCASE 2024 (4 epochs up, 26 down).

    Args:
        epoch (`int`): The epoch, counted from 0.
        num_epochs (`int`): Epochs of the whole training, after which the descent would reach `FINAL_FACTOR`.
        warmup_epochs (`int`, *optional*, defaults to 4): Epochs before the full rate is reached.
    """
    if epoch < warmup_epochs:
        return math.exp(-5 * (1 - max(epoch, 0.5) / warmup_epochs) ** 2)
    descent = (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1)
    return 1 - (1 - FINAL_FACTOR) * min(descent, 1.0)


def warmup_cosine(step: int, num_steps: int, warmup_steps: int) -> float:
    """Return the factor of a linear warm-up from zero, followed by half a period of a cosine down to zero.

    Source: the public code of the baseline of DCASE 2024 Task 1.

    Args:
        step (`int`): The step, counted from 0.
        num_steps (`int`): Steps of the whole training, after which the factor would be zero.
        warmup_steps (`int`): Steps before the full rate is reached.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return (1 + math.cos(math.pi * (step - warmup_steps) / max(num_steps - warmup_steps, 1))) / 2
