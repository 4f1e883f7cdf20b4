"""Where clients are and how they move: a base station at the origin, clients around it.

Positions are arrays `xy` of shape [n, 2] in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import ConfigError

Floats = NDArray[np.float64]

TURN_RAD_PER_SQRT_S = 0.1
"""Default heading diffusion: a client keeps its direction for about 2/0.1^2 = 200 s (a choice, not a standard's)."""


def drop(n: int, radius_m: float, min_distance_m: float, rng: np.random.Generator) -> Floats:
    """Return `xy` [n, 2] of clients spread evenly over the ring between `min_distance_m` and `radius_m`.

    Raises:
        ConfigError: `n` is not positive, or the ring is empty.
    """
    _check_count(n)
    if not 0 <= min_distance_m < radius_m:
        raise ConfigError(
            f"a cell of radius {radius_m} m with no client nearer than {min_distance_m} m has no room: "
            "the shortest distance must be at least 0 and below the radius"
        )
    uniform, turn = rng.random((2, n))
    r = np.sqrt(min_distance_m**2 + uniform * (radius_m**2 - min_distance_m**2))
    return _polar(r, 2 * np.pi * turn)


def drop_square(n: int, side_m: float, rng: np.random.Generator) -> Floats:
    """Return `xy` [n, 2] of clients spread evenly over a square of side `side_m` around the base station.

    Raises:
        ConfigError: `n` or the side is not positive.
    """
    _check_count(n)
    if not side_m > 0:
        raise ConfigError(f"a square cell of side {side_m} m has no room: the side must be positive")
    return (rng.random((n, 2)) - 0.5) * side_m


def distances(xy: Floats, h_bs_m: float, h_ut_m: Floats | float) -> tuple[Floats, Floats]:
    """Return the horizontal and the direct distance [m], each [n], to a base station at the origin.

    Args:
        xy: Positions [n, 2] in metres.
        h_bs_m: Height of the base station.
        h_ut_m: Height of the clients, one or [n].
    """
    d2 = np.hypot(xy[:, 0], xy[:, 1])
    return d2, np.hypot(d2, h_bs_m - np.asarray(h_ut_m, dtype=np.float64))


@dataclass(frozen=True)
class Walk:
    """Clients that walk in a disc cell, with directions that drift and turn back at the border.

    Args:
        xy: Positions [n, 2] in metres.
        heading_rad: Directions [n].
        min_distance_m: No client comes nearer to the base station than this.
        turn_rad_per_sqrt_s: Standard deviation by which a heading drifts in one second.
        moved_m: How far [n] each client now is from where it was before the last move; what shadowing decorrelates over.
    """

    xy: Floats
    heading_rad: Floats
    min_distance_m: float = 0.0
    turn_rad_per_sqrt_s: float = TURN_RAD_PER_SQRT_S
    moved_m: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def start(cls, xy: Floats, rng: np.random.Generator, min_distance_m: float = 0.0) -> Walk:
        """Return clients at `xy` [n, 2] that face evenly spread directions."""
        return cls(xy, 2 * np.pi * rng.random(len(xy)), min_distance_m, moved_m=np.zeros(len(xy)))

    def move(self, speed_mps: Floats | float, dt_s: float, radius_m: float, rng: np.random.Generator) -> Walk:
        """Return the walk `dt_s` seconds later.

        A step is a straight line whose end stays in the disc by mirror reflection at the border, however many radii it is
        long; the heading drifts before it. A client that ends nearer than `min_distance_m` is set back to that distance.

        Args:
            speed_mps: Speed, one or [n].
            dt_s: Duration of the step; far below 2 / turn_rad_per_sqrt_s^2 if the path inside the step matters.
            radius_m: Radius of the cell.
            rng: Draws n normals whatever the values are.
        """
        drift = rng.standard_normal(len(self.xy)) * self.turn_rad_per_sqrt_s * np.sqrt(dt_s)
        heading = self.heading_rad + drift
        length = np.broadcast_to(np.asarray(speed_mps, dtype=np.float64) * dt_s, heading.shape)
        xy = self.xy + _polar(length, heading)
        # A disc is convex: whoever starts and ends inside never met the border.
        crossing = np.flatnonzero(np.maximum(_squared(xy), _squared(self.xy)) > radius_m**2)
        ends = _reflected(self.xy[crossing], heading[crossing], length[crossing], radius_m)
        xy[crossing], heading[crossing] = ends
        near = np.flatnonzero(_squared(xy) < self.min_distance_m**2)
        xy[near] = _polar(np.full(near.size, self.min_distance_m * (1 + 1e-12)), np.arctan2(xy[near, 1], xy[near, 0]))
        moved = np.sqrt(_squared(xy - self.xy))
        return Walk(xy, np.mod(heading, 2 * np.pi), self.min_distance_m, self.turn_rad_per_sqrt_s, moved)


def _reflected(xy: Floats, heading: Floats, length: Floats, radius: float) -> tuple[Floats, Floats]:
    """Return ends and headings after straight lines of `length` mirrored at the circle of `radius` (a billiard, in closed form).

    From the first hit on, every chord has the same length and turns the path by the same angle, so the number of whole chords
    is one division: no loop over bounces.
    """
    inside = xy / np.sqrt(np.maximum(_squared(xy) / radius**2, 1.0))[:, None]  # where a client began outside
    direction = _polar(np.ones_like(heading), heading)
    along = np.sum(inside * direction, axis=1)
    to_border = -along + np.sqrt(np.maximum(along**2 + radius**2 - _squared(inside), 0.0))
    hit = inside + to_border[:, None] * direction
    hit_angle = np.arctan2(hit[:, 1], hit[:, 0])
    incidence = np.mod(heading - hit_angle + np.pi, 2 * np.pi) - np.pi
    turn = np.pi - 2 * incidence
    chord = np.maximum(2 * radius * np.cos(incidence), 1e-9 * radius)
    beyond = length - to_border
    chords = np.floor(np.maximum(beyond, 0.0) / chord)
    rest = np.maximum(beyond, 0.0) - chords * chord
    bounced = beyond > 0
    heading_after = heading + np.where(bounced, (chords + 1) * turn, 0.0)
    start = np.where(bounced[:, None], _polar(np.full_like(heading, radius), hit_angle + chords * turn), inside)
    end = start + _polar(np.where(bounced, rest, length), heading_after)
    outside = np.sqrt(np.maximum(_squared(end) / radius**2, 1.0))[:, None] * (1 + 1e-12)  # rounding stays inside too
    return end / outside, heading_after


def _squared(xy: Floats) -> Floats:
    return np.asarray(xy[:, 0] ** 2 + xy[:, 1] ** 2)


def _polar(r: Floats, angle: Floats) -> Floats:
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _check_count(n: int) -> None:
    if n < 1:
        raise ConfigError(f"a world needs at least one client, not {n}")
