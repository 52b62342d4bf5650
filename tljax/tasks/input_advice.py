"""What the speeds of the input say, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from tljax.tasks.execution import Execution

# Gains below these are not worth a setting, and lie within what a busy machine adds and takes.
_WORTH_WORKERS = 1.15
_WORTH_CACHE = 1.3
# Images that are so many times larger than the model sees cost more to decode than to look at.
_LARGE = 2.0
_STORED_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Images a second, and what they depend on.

    Args:
        parts: of each part, in one thread.
        decode_limit: of `num_processes` that read and decode, and do nothing else.
        work_limit: of the same, that do to each image all that training does.
        whole: {number of workers: of the pipeline without a cache}.
        cold: {number of workers: of the pipeline while it fills the cache}.
        warm: {number of workers: of the pipeline from the cache}.
        num_processes: of the limits.
        num_cores: that this process may use.
        execution: of the config.
        short_side: of the images, in pixels, in the median.
        wanted_side: what the model sees.
        cache_gb: size of the cache of all images, in units of 10^9 bytes.
        free_gb: what its disk has left.
        is_stored: the config trains from a stored prefix, which images are read for once.
    """

    parts: Mapping[str, float]
    decode_limit: float
    work_limit: float
    whole: Mapping[int, float]
    cold: Mapping[int, float]
    warm: Mapping[int, float]
    num_processes: int
    num_cores: int
    execution: Execution
    short_side: int
    wanted_side: int
    cache_gb: float
    free_gb: float
    is_stored: bool

    @property
    def best(self) -> int:
        """The smallest number of workers that is about as fast as any."""
        most = max(self.whole.values())
        return min(number for number, rate in self.whole.items() if rate * _WORTH_WORKERS >= most)


def advise(findings: Findings) -> list[str]:
    """Return lines: how near the whole is to its limits, the slowest part, and what to change."""
    most = max(findings.whole, key=lambda number: findings.whole[number])
    rate, count = findings.whole[most], findings.num_processes
    slowest = min(findings.parts, key=lambda name: findings.parts[name])
    lines = [
        f"whole / limit of decoding in {count} processes: {rate / findings.decode_limit:.2f}; "
        f"/ limit of all work on an image: {rate / findings.work_limit:.2f}; "
        f"from a full cache: {max(findings.warm.values()) / findings.decode_limit:.2f} of the limit of decoding",
        f"slowest part: {slowest}, {1000 / findings.parts[slowest]:.2f} ms an image",
    ]
    changes = [*_workers(findings), *_cache(findings), *_part(findings, slowest)]
    if not changes:
        changes = [
            f"nothing: the input gives {rate:.0f} images/s; where a step still waits for it, the {findings.num_cores} "
            "cores of this machine are what limits it"
        ]
    lines += [f"change: {change}" for change in changes]
    if findings.is_stored:
        lines.append(
            "note: this config trains from a stored prefix (finetune.cache 'always'); images are read once to make it, "
            "and the figures above are for a config that trains from images"
        )
    return lines


def _workers(findings: Findings) -> list[str]:
    best, used = findings.best, findings.execution.num_workers
    now = findings.whole.get(used)
    if now is None or findings.whole[best] < now * _WORTH_WORKERS:
        return []
    return [f"execution.num_workers={best}: {findings.whole[best]:.0f} images/s in place of {now:.0f}"]


def _cache(findings: Findings) -> list[str]:
    gain = max(findings.warm.values()) / max(findings.whole.values())
    if gain < _WORTH_CACHE or findings.execution.image_cache_gb >= findings.cache_gb:
        return []
    size = f"{findings.cache_gb * 1.05:.2g}"
    what = f"execution.image_cache_gb={size}: {gain:.1f} times as many images/s from the second epoch on"
    if findings.cache_gb > findings.free_gb:
        return [f"{what}; the disk of cache_dir has {findings.free_gb:.3g} GB left, so put cache_dir on another"]
    return [f"{what}; keep cache_dir on a local disk"]


def _part(findings: Findings, slowest: str) -> list[str]:
    if slowest == "read":
        return ["copy the data to a local disk, or to memory: the files come more slowly than they are decoded"]
    if slowest == "decode" and findings.short_side > _LARGE * findings.wanted_side:
        side = max(_STORED_SIDE, findings.wanted_side)
        return [
            f"store smaller images: their short side is {findings.short_side} pixels and the model sees "
            f"{findings.wanted_side}; copies with a short side of about {side} decode faster by the ratio of the areas"
        ]
    if slowest == "transfer":
        return ["the way to the devices is slower than one core: look at what else uses it, or use fewer devices"]
    if slowest in ("preprocess", "augment"):
        return [
            f"resizing costs most, from a short side of {findings.short_side} pixels: smaller stored images or the "
            "cache make it cheaper, more cores go through more of it"
        ]
    return []
