"""What reinforcement learning can be told, by a node or a command line; and what each method does where it is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from ..rollouts.advantages import OF_TERMS
from .objectives import identity_grpo, ipro
from .rollout_batches import FRESH, PAIRS, STEPS, TAKES, Plan, Share


@dataclass(frozen=True)
class Method:
    """A method and its published settings.

    draws  what a step sees: noised TAKES, PAIRS of them, recorded random STEPS (with guidance), or FRESH takes
    beta   strength, inverse step size or temperature, as the objective's module says; 0 for none
    kl     weight of the distance from the MODEL without LoRA
    clip   of the ratio; 0 for none
    """

    title: str
    draws: str
    beta: float
    kl: float
    clip: float
    advantage: str
    rate: float


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        # DiffusionNFT config/nft.py: beta 1 for one reward, 0.1 for several
        "nft": Method("DiffusionNFT", TAKES, 1.0, 1e-4, 0.0, "grpo", 3e-4),
        # Flow-Factory trainers/crd.py, its defaults, with the reference unguided
        "crd": Method("CRD", TAKES, 1.0, 0.1, 0.0, "gdpo", 1e-4),
        # flow_grpo config/dpo.py
        "dpo": Method("Flow-DPO", PAIRS, 100.0, 0.0, 0.0, "centred", 1e-4),
        "rwr": Method("reward-weighted regression", TAKES, 1.0, 0.0, 0.0, "grpo", 1e-4),
        # flow_grpo config/grpo.py, Wan 2.1
        "grpo": Method("Flow-GRPO", STEPS, 0.0, 0.004, 1e-3, "grpo", 1e-4),
        # Flash-GRPO config/dgx.py
        "flash_grpo": Method("Flash-GRPO", STEPS, 0.0, 0.0, 1e-3, "batch_std", 1e-4),
        # config/grpo_guard.py
        "grpo_guard": Method("GRPO-Guard", STEPS, 0.0, 0.0, 2e-6, "grpo", 1e-4),
        "identity_grpo": Method(
            "Identity-GRPO",
            STEPS,
            0.0,
            identity_grpo.KL,
            identity_grpo.CLIP,
            "identity_grpo",
            identity_grpo.RECIPE["rate"],
        ),
        # arXiv 2510.14255: on a LoRA five times the rate at which it trains the whole model
        "ipro": Method("IPRO", FRESH, 0.0, ipro.KL, 0.0, "grpo", 1e-4),
    }
)
OLD = ("frozen", "average")
_GROUPS = 2
_REWARD = re.compile(
    r"(?P<name>[^=@]+?)\s*(?:=\s*(?P<weight>[-+.\d]+))?\s*(?:@\s*(?P<low>[.\d]+)\s*-\s*(?P<high>[.\d]+))?"
)


@dataclass(frozen=True)
class Settings:
    """All that a training depends on, beside the policy and the rollouts.

    steps          updates, each of `groups` groups of `takes` takes a process
    rate, beta, kl, clip, advantage  None for the method's own
    weights        of rewards by name, for advantages of several rewards
    shares, best, worst, low, high, permute  see rollout_batches.Plan
    old            the old policy stays what it is, or follows the trained one's average, step by step
    ema, weight_decay, clip_norm     of the trainer
    Raises ValueError for what makes no training.
    """

    method: str = "nft"
    steps: int = 300
    groups: int = 2
    takes: int = 8
    rate: float | None = None
    beta: float | None = None
    kl: float | None = None
    clip: float | None = None
    advantage: str | None = None
    weights: tuple[tuple[str, float], ...] = ()
    shares: tuple[Share, ...] = ()
    best: int = 0
    worst: int = 0
    low: float = 0.0
    high: float = 1.0
    permute: bool = False
    old: str = OLD[0]
    ema: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"The method '{self.method}' is unknown; choose one of {', '.join(METHODS)}.")
        if self.old not in OLD:
            raise ValueError(f"The old policy is one of {', '.join(OLD)}; got '{self.old}'.")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps train nothing; use at least 1.")
        least = {"crd": 2, "dpo": 2}.get(self.method, 1)
        if self.takes < least:
            raise ValueError(
                f"{self.spec.title} compares takes; give it at least {least} of a group, not {self.takes}."
            )
        if self.spec.draws == STEPS and self.shares:
            raise ValueError(
                f"{self.spec.title} trains on recorded steps; rewards cannot have noise levels of their own."
            )
        judged = self.shares or self.weights or self.best or self.worst or self.permute or self.advantage
        if self.spec.draws == FRESH and judged:
            raise ValueError(
                f"{self.spec.title} follows the gradient of the faces' similarity in new takes; it knows no other "
                "rewards, and no advantages. Leave these settings as they are."
            )
        if self.spec.beta and not self.number("beta") > 0:
            raise ValueError(f"beta of {self.spec.title} is {self.number('beta'):g}; it must be more than 0.")
        self.plan()

    @classmethod
    def identity_grpo_recipe(cls, **changes) -> Settings:
        """A step of 16 groups of 8, and all else as Identity-GRPO has it; one process."""
        recipe = identity_grpo.RECIPE
        own = {name: recipe[name] for name in ("ema", "weight_decay", "clip_norm")}
        return cls("identity_grpo", **{"groups": recipe["groups_a_step"], "takes": recipe["group"], **own, **changes})

    @property
    def spec(self) -> Method:
        return METHODS[self.method]

    def number(self, name: str) -> float:
        """rate, beta, kl or clip: what was set, or the method's own."""
        own = getattr(self, name)
        return getattr(self.spec, name) if own is None else own

    def plan(self) -> Plan:
        return Plan(
            self.groups,
            self.takes,
            self.advantage or self.spec.advantage,
            dict(self.weights) or None,
            self.shares,
            self.best,
            self.worst,
            self.low,
            self.high,
            self.permute,
            self.method == "identity_grpo",
            self.seed,
        )

    @classmethod
    def of(cls, method: str, rewards: str = "", groups: int = 0, **numbers) -> Settings:
        """From what people type: rate, beta and so on below 0 are the method's own, and so are 0 groups a step.

        rewards  see `parse_rewards`; empty for the total that the takes were collected with
        """
        given = {name: value for name, value in numbers.items() if not isinstance(value, float) or value >= 0}
        shares = parse_rewards(rewards)
        if any((share.low, share.high) != (0.0, 1.0) for share in shares):
            given["shares"] = shares
        elif shares:
            given["weights"] = tuple((share.reward, share.weight) for share in shares)
            spec = METHODS.get(method)
            given["advantage"] = spec.advantage if spec and spec.advantage in OF_TERMS else OF_TERMS[0]
        own = identity_grpo.RECIPE["groups_a_step"] if method == "identity_grpo" else _GROUPS
        return cls(method, groups=groups or own, **given)

    def facts(self) -> dict[str, str]:
        """What a training that is resumed must have in common with the one that was stopped."""
        return {name: str(value) for name, value in asdict(self).items()}


def parse_rewards(text: str) -> tuple[Share, ...]:
    """ "score, motion=0.2, naturalness=0.5@0-0.4": names, weights (1 without) and shares of noise at which they count.

    Raises ValueError that says which part cannot be read.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _REWARD.fullmatch(part)
        try:
            name, *numbers = match.group("name", "weight", "low", "high")
            pairs = zip(numbers, (1.0, 0.0, 1.0), strict=True)
            found.append(Share(name, *(default if number is None else float(number) for number, default in pairs)))
        except (AttributeError, ValueError) as error:
            why = f" ({error})" if match else ""
            raise ValueError(
                f"'{part}' is no reward with its weight{why}; write NAME=WEIGHT, or NAME=WEIGHT@LOW-HIGH for the noise "
                "at which it counts."
            ) from None
    names = [share.reward for share in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The reward '{name}' is named twice; name it once.")
    return tuple(found)
