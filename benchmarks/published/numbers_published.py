"""MuxServe's results, recovered from its repository's files (benchmark/end_to_end/process_log_file.ipynb and
benchmark/chatlmsys/merged/*.json). Spatial, temporal, MuxServe; None where logs are incomplete.
"""

from typing import NamedTuple

Three = tuple[float, float | None, float]


class Point(NamedTuple):
    """``weighted`` and ``plain`` requests a second; ``slo``: percent within 8 times the latency alone."""

    weighted: Three
    plain: Three
    slo: Three | None = None


# alpha -> rate scale (1.0: 20 requests a second for the most popular model)
SYNTHETIC: dict[float, dict[float, Point]] = {
    2.1: {
        1.0: Point((10.7, 16.0, 20.0), (18.5, 21.7, 26.9), (34.8, 29.2, 99.8)),
        1.5: Point((15.3, 23.7, 36.7), (21.4, 24.8, 34.9), (40.9, 24.0, 46.6)),
        2.0: Point((22.2, 34.3, 53.7), (25.5, 29.3, 40.0), (47.4, 19.3, 46.5)),
        2.5: Point((29.6, 41.7, 73.1), (28.9, 31.4, 45.9), (27.3, 23.5, 51.7)),
    },
    1.7: {
        1.0: Point((11.3, 15.7, 20.0), (24.1, 26.2, 31.1), (48.2, 35.6, 92.0)),
        1.5: Point((19.6, 25.3, 38.6), (32.3, 29.7, 43.2), (56.3, 33.4, 56.0)),
        2.0: Point((26.0, 34.9, 57.9), (37.0, 33.4, 52.4), (39.5, 30.6, 61.9)),
        2.5: Point((34.4, 42.6, 73.4), (41.1, 38.8, 58.5), (40.6, 31.8, 65.9)),
    },
    1.3: {
        1.0: Point((14.4, 20.2, 22.7), (37.7, 40.3, 44.5), (64.9, 46.8, 91.6)),
        1.5: Point((23.7, 27.8, 42.2), (48.1, 42.0, 59.7), (58.2, 43.5, 69.5)),
        2.0: Point((33.9, 42.2, 67.3), (56.5, 50.5, 73.8), (58.4, 44.5, 74.3)),
        2.5: Point((44.5, 64.5, 108.4), (65.3, 64.9, 93.2), (61.5, 49.4, 79.9)),
    },
    0.9: {
        1.0: Point((20.9, None, 30.0), (61.9, None, 66.3), (69.6, None, 80.3)),
        1.5: Point((38.4, None, 63.3), (83.5, None, 97.0), (71.6, None, 68.2)),
        2.0: Point((57.8, None, 103.9), (101.0, None, 120.7), (70.4, None, 60.1)),
        2.5: Point((75.3, 72.5, 138.3), (115.8, 89.3, 145.8), (73.4, 33.2, 74.7)),
    },
    0.7: {
        1.0: Point((31.3, 29.8, 40.1), (85.6, 66.1, 92.2), (74.7, 22.4, 78.4)),
        1.5: Point((56.3, 67.8, 86.5), (113.8, 104.1, 133.4), (71.6, 33.9, 76.6)),
        2.0: Point((82.2, 110.6, 130.3), (127.7, 132.1, 149.7), (62.7, 36.4, 43.9)),
        2.5: Point((105.3, 141.3, 153.5), (135.9, 155.3, 165.5), (44.9, 36.0, 45.8)),
    },
}

# mean requests a second of a model
CHATLMSYS: dict[float, Point] = {
    3.0: Point((3.87, 3.51, 4.20), (36.5, 32.0, 38.1)),
    4.8: Point((4.64, 2.72, 5.37), (47.1, 27.7, 50.6)),
    7.1: Point((5.07, 4.70, 6.32), (55.8, 48.7, 61.6)),
    9.5: Point((5.36, 5.19, 7.58), (62.1, 47.9, 71.6)),
    11.9: Point((5.67, 5.35, 7.83), (67.8, 49.6, 76.5)),
}
