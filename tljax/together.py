"""The command `tljax together`: runs of a study that train in one program."""

from collections.abc import Sequence

from tljax.arguments import make_flags, parse_config
from tljax.launching import until_told
from tljax.tasks.together_jobs import NAME, run_job


def together(arguments: Sequence[str]) -> int:
    """Train runs in one program: tljax together --config=FILE --workdir=DIR.

    `tljax sweep` writes FILE and starts this, for runs that differ in numbers alone. It ends with one line for each
    end that runs came to; how each ended is in DIR/outcomes.json. The exit status is 0 also where some have failed, or
    have to run alone; 85 where SIGTERM has ended it, after which the same command goes on.
    """
    values = make_flags(workdir=str)
    rest = values(list(arguments), known_only=True)
    if not values.workdir:
        raise ValueError(f"--workdir is missing: tljax {NAME} --config=FILE --workdir=DIR")
    config = parse_config(rest)

    def work() -> int:
        for state, count in run_job(config, values.workdir).items():
            print(f"{state:<40} {count:.6g}")
        return 0

    return until_told(work)
