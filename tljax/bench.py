"""`tljax bench`: what the input, and the training step, give on this machine."""

from collections.abc import Sequence
from typing import Any

from tljax.arguments import make_flags, parse_config
from tljax.paths import did_you_mean
from tljax.tasks import bench_data, bench_jobs
from tljax.tasks.bench_train import bench_train, check_target, format_rows, write_rows


def bench(arguments: Sequence[str]) -> int:
    """Measure this machine: tljax bench data --config=FILE ..., or tljax bench train ...

    tljax bench data --config=FILE [--config.x.y=v] [--num_workers=0,1,2] [--seconds=3]
    says how many images/s each part of the input of a config gives, and all together with so many worker processes,
    what the cores could give at most, and what to change. --seconds is the length of each measurement.

    tljax bench train [--model=NAMES] [--rows=NAMES] [--kernels=NAMES] [--small] ...
    says how many images/s the training step takes in: --rows=all,last_third,head,cached of --model, on random images
    that lie on the device, --batch_size=256 at --image_size=224, computed in --dtype=bfloat16. The best and the median
    of --rounds=3 rounds of --steps=30 steps; compilation is not among them. --kernels=auto,plain,pallas_norm,
    pallas_gelu compares ways to compute the same. --small takes a minute or two on a CPU. --to=FILE writes CSV or JSON.
    """
    kinds = {"data": _data, "train": _train}
    if len(arguments) < 2 or arguments[1] not in kinds:
        what = arguments[1] if len(arguments) > 1 else ""
        raise ValueError(f"no benchmark {what!r}{did_you_mean(what, kinds)}; known: {', '.join(kinds)}")
    print(kinds[arguments[1]](arguments[1:]))
    return 0


def _data(arguments: Sequence[str]) -> str:
    """Run `tljax bench data`."""
    values = make_flags(num_workers=str, seconds=float)
    config = parse_config(values(list(arguments), known_only=True))
    given: dict[str, Any] = {}
    if values.num_workers is not None:
        given["num_workers"] = tuple(parse_counts(values.num_workers, "--num_workers"))
    if values.seconds is not None:
        given["seconds"] = values.seconds
    return bench_data.bench_data(config, bench_data.Settings(**given))


def parse_counts(text: str, flag: str) -> list[int]:
    """Return the whole numbers of a flag, with commas between them.

    Raises:
        ValueError: there are none, or others.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"{flag} is {text!r}, wanted whole numbers with commas between them, as 0,1,2")
    return [int(word) for word in words]


def _train(arguments: Sequence[str]) -> str:
    """Run `tljax bench train`."""
    names = {"model": "models", "rows": "rows", "kernels": "kernels"}
    numbers = {"batch_size": "batch_size", "image_size": "image_size", "steps": "num_steps", "rounds": "num_rounds"}
    values = make_flags(**dict.fromkeys(names, str), **dict.fromkeys(numbers, int), dtype=str, small=bool, to=str)
    rest = values(list(arguments))[1:]
    if rest:
        raise ValueError(f"not understood: {' '.join(rest)}; options are written --name=value")
    texts = {name: values[flag].value for flag, name in names.items()}
    given: dict[str, Any] = {name: tuple(text.split(",")) for name, text in texts.items() if text}
    given |= {name: values[flag].value for flag, name in numbers.items() if values[flag].value is not None}
    if values.dtype is not None:
        given["dtype"] = values.dtype
    if values.to is not None:
        check_target(values.to)
    rows = bench_train(bench_jobs.Settings(**{**(bench_jobs.SMALL if values.small else {}), **given}))
    if values.to is not None:
        write_rows(rows, values.to)
    return format_rows(rows)
