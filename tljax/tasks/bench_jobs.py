"""What `tljax bench train` measures: networks, what of them is trained, and how they compute."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from tljax.models import Net, VitConfig, architecture
from tljax.models.kernels import CHEAP, PALLAS, PLAIN, PLAIN_FORMULAS, XLA, Kernels, platform
from tljax.paths import did_you_mean

MODELS = ("vit_b16", "vit_s16", "resnet50", "vgg16")
ALL, LAST_THIRD, HEAD, CACHED = TRAINED = ("all", "last_third", "head", "cached")
KERNELS = {
    "auto": Kernels(),
    "plain": PLAIN_FORMULAS,
    "xla_attention": Kernels(attention=XLA),
    "plain_gelu": dataclasses.replace(Kernels().without_own, gelu=PLAIN),
    "cheap_gelu": dataclasses.replace(Kernels().without_own, gelu=CHEAP),
    "without_pallas": Kernels().without_own,
    "pallas_norm": dataclasses.replace(Kernels().without_own, layer_norm=PALLAS, batch_norm=PALLAS),
    "pallas_gelu": dataclasses.replace(Kernels().without_own, bias_gelu=PALLAS),
    "pallas": Kernels(layer_norm=PALLAS, bias_gelu=PALLAS, batch_norm=PALLAS),
}
DTYPES = ("float32", "bfloat16")
NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Args:
        models: names of architectures.
        rows: of `TRAINED`: all params, the last third of the stages, the head alone, or the last third on stored
            activations of the stages before.
        kernels: names of `KERNELS`; networks without a choice are measured once.
        batch_size: images a step, over all devices.
        dtype: to compute in; params are float32.
        image_size: in pixels.
        num_steps: of a round; the time of a round is that of its steps together.
        num_rounds: the best and the median round are reported.

    Raises:
        ValueError: something is not known, or out of range.
    """

    models: tuple[str, ...] = MODELS
    rows: tuple[str, ...] = TRAINED
    kernels: tuple[str, ...] = ("auto",)
    batch_size: int = 256
    dtype: str = "bfloat16"
    image_size: int = 224
    num_steps: int = 30
    num_rounds: int = 3

    def __post_init__(self) -> None:
        problems = [
            f"{name} {chosen!r}{did_you_mean(chosen, known)}, wanted some of {', '.join(known)}"
            for name, known in (("rows", TRAINED), ("kernels", tuple(KERNELS)), ("dtype", DTYPES))
            for chosen in ([self.dtype] if name == "dtype" else getattr(self, name))
            if chosen not in known
        ]
        problems += [
            f"{name} {getattr(self, name)}, wanted at least 1"
            for name in ("batch_size", "image_size", "num_steps", "num_rounds")
            if getattr(self, name) < 1
        ]
        if self.batch_size % jax.device_count():
            problems.append(f"batch_size {self.batch_size}, wanted a multiple of the {jax.device_count()} devices")
        if jax.device_count() > 1 and platform() != "cpu" and any(KERNELS[name].use_pallas for name in self.kernels):
            problems.append(f"{PALLAS} kernels run on one device, and there are {jax.device_count()}")
        if problems:
            raise ValueError(f"bench train: {'; '.join(problems)}")
        for name in self.models:
            architecture(name)

    def jobs(self) -> list["Job"]:
        """Return what is measured, in order."""
        jobs = []
        for model in self.models:
            has_choice = bool(architecture(model).kernel_stages)
            chosen = self.kernels if has_choice else self.kernels[:1]
            jobs += [
                Job(
                    model=model, row=row, kernels=name, batch_size=self.batch_size, dtype=self.dtype,
                    image_size=self.image_size,
                )
                for row in self.rows
                for name in chosen
            ]  # fmt: skip
        return jobs


# For a CPU, about a minute.
SMALL: dict[str, Any] = {
    "models": ("vit_ti16", "resnet18", "vgg11"), "batch_size": 8, "image_size": 64, "num_steps": 2, "num_rounds": 2,
    "dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the table; see `Settings`."""

    model: str
    row: str
    kernels: str
    batch_size: int
    dtype: str
    image_size: int

    @property
    def net(self) -> Net:
        """The network, with 1000 classes."""
        native = architecture(self.model)
        size = {"image_size": self.image_size} if isinstance(native, VitConfig) else {}
        return Net(dataclasses.replace(native, num_classes=NUM_CLASSES, **size))

    def freeze(self, net: Net) -> str:
        """Return the first stage that is trained."""
        return {ALL: net.stages[0], HEAD: net.stages[-1]}[self.row] if self.row in (ALL, HEAD) else last_third(net)


def last_third(net: Net) -> str:
    """Return the stage at which the last third of a network begins, more or less.

    The last 4 of 12 blocks of a ViT; of a convolutional network, the stages on the smallest maps, and what follows.
    """
    if isinstance(net.architecture, VitConfig):
        return net.architecture.branch_stages[-(net.architecture.depth // 3)]
    on_maps = [stage for stage in net.stages if "_" in stage]
    last = on_maps[-1].partition("_")[0]
    return next(stage for stage in on_maps if stage.startswith(f"{last}_"))
