"""The subsets of a discrete chain's steps that DDPM's descendants sample on, by the names that diffusers gives them."""

from __future__ import annotations

from dataclasses import dataclass

from diff_diffusion.core.process import Process
from diff_diffusion.errors import ConfigError
from diff_diffusion.registry import register
from diff_diffusion.samplers.grid import Grid

SPACINGS = ("leading", "trailing", "linspace")


@register(
    "grid/spacing",
    leading={"spacing": "leading"},
    trailing={"spacing": "trailing"},
    linspace={"spacing": "linspace"},
)
@dataclass(frozen=True)
class Spacing(Grid):
    """num_steps of a chain's steps 0 … timesteps - 1, then the data. Step i is the time (i + 1) / timesteps.

    With n = num_steps, T = timesteps and k from n - 1 down to 0, the steps are

        leading   k ⌊T/n⌋                      ends at the chain's first step, begins short of its last
        trailing  round((k + 1) T/n) - 1       begins at the chain's last step, t = 1
        linspace  round(k (T - 1)/(n - 1))     both ends

    `leading` begins below time 1, with noise less than the model could take, and says less than the truth about the
    start: it is how many published models were sampled, not a good choice. One step of linspace is the last of the
    chain.

    Args:
        num_steps: at most `timesteps`.
        timesteps: T, the length of the chain.
        spacing: "leading", "trailing" or "linspace".

    Raises:
        ConfigError: an unknown spacing, or more steps than the chain has.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv 2305.08891, table 2, whose
    steps count from 1.
    """

    num_steps: int = 50
    timesteps: int = 1000
    spacing: str = "trailing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing not in SPACINGS:
            raise ConfigError(f"spacing is one of {', '.join(SPACINGS)}, not {self.spacing!r}")
        if not self.num_steps <= self.timesteps <= 1_000_000:
            raise ConfigError(
                f"{self.spacing} spacing takes its {self.num_steps} steps from a chain at least as long, of at most "
                f"1,000,000, not of {self.timesteps}: use fewer steps, or a grid of continuous time such as log_snr"
            )

    def times(self, process: Process) -> list[float]:
        n, chain = self.num_steps, self.timesteps
        falling = range(n - 1, -1, -1)
        if self.spacing == "leading":
            steps = [k * (chain // n) for k in falling]
        elif self.spacing == "trailing":
            steps = [round((k + 1) * chain / n) - 1 for k in falling]
        else:
            steps = [round(k * ((chain - 1) / (n - 1))) for k in falling] if n > 1 else [chain - 1]
        return [*((step + 1) / chain for step in steps), 0.0]
