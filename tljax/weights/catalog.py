"""Published weights by name."""

from fnmatch import fnmatchcase

from tljax.paths import did_you_mean
from tljax.weights.catalog_entries import CATALOG
from tljax.weights.entry import Entry


def entry(name: str) -> Entry:
    """Return the catalog entry of that name.

    Raises:
        ValueError: there is none; the message names the other ways to load weights.
    """
    if name not in CATALOG:
        raise ValueError(
            f"no weights {name!r} in the catalog{did_you_mean(name, CATALOG)}; `tljax models` lists them. Other "
            "weights load as 'file:PATH' (a file or model folder), 'hf:OWNER/NAME' or 'timm:NAME', and nets without "
            "pretraining as 'random:ARCHITECTURE'"
        )
    return CATALOG[name]


def entries(pattern: str = "*") -> dict[str, Entry]:
    """Return the entries whose names match a shell pattern, or hold it as text.

    Raises:
        ValueError: there is none.
    """
    found = {name: item for name, item in CATALOG.items() if fnmatchcase(name, pattern) or pattern in name}
    if not found:
        raise ValueError(f"no weights {pattern!r} in the catalog{did_you_mean(pattern, CATALOG)}")
    return found
