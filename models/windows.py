"""Which layers of a decoder see a window of tokens, as config.json says it: ``sliding_window``,
``layer_types`` and what families have of their own. A window counts the token itself; None: the layer sees
everything.

Every function raises ModelFolderError by file and field.
"""

from muxd.models.config_file import Fields

SLIDING, FULL = "sliding_attention", "full_attention"  # of ``layer_types``


def by_type(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Gemma 3: ``layer_types`` (5.x), else every ``sliding_window_pattern``-th layer is full."""
    kinds = kinds_of(fields, layers)
    if kinds is None:
        pattern = fields.integer("sliding_window_pattern", 6)
        kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    window = fields.integer("sliding_window", 4096) if SLIDING in kinds else None
    return tuple(window if kind == SLIDING else None for kind in kinds)


def late_windows(fields: Fields, layers: int) -> tuple[int | None, ...]:
    """Qwen: ``use_sliding_window`` lets ``layer_types`` slide, or all from ``max_window_layers`` on."""
    window = window_of(fields) if fields.flag("use_sliding_window", False) else None
    kinds = kinds_of(fields, layers)
    if kinds is None:
        first = fields.integer("max_window_layers", 28, least=0)
        return tuple(window if i >= first else None for i in range(layers))
    if SLIDING in kinds and window is None:
        raise fields.refuse(
            "layer_types", f"names {SLIDING}, but use_sliding_window or sliding_window says no"
        )
    return tuple(window if kind == SLIDING else None for kind in kinds)


def window_of(fields: Fields) -> int | None:
    """``sliding_window``: null is none; absent, it is 4096 as in transformers."""
    absent = "sliding_window" not in fields.raw
    return 4096 if absent else fields.optional_integer("sliding_window")


def kinds_of(fields: Fields, layers: int) -> list[str] | None:
    """``layer_types``, checked; None when absent."""
    kinds: list[str] | None = fields.raw.get("layer_types")
    known = (FULL, SLIDING)
    if kinds is None or (
        isinstance(kinds, list) and len(kinds) == layers and all(kind in known for kind in kinds)
    ):
        return kinds
    raise fields.refuse("layer_types", f"must list {layers} times one of {', '.join(known)}")
