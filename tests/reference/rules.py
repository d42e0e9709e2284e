"""The field's clipping rules, one step after the other in float64 with NumPy, written from their equations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


def total_norm(grads: Arrays) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in grads.values()))


def scaled(grads: Arrays, factor: float) -> Arrays:
    return {name: g * factor for name, g in grads.items()}


def agc(weights: Arrays, grads: Arrays, clipping: float, eps: float) -> Arrays:
    out = {}
    for name, g in grads.items():
        w, new = weights[name], g.copy()
        if g.ndim < 2:
            bound = clipping * max(np.linalg.norm(w), eps)
            out[name] = new * min(1.0, bound / np.linalg.norm(g)) if np.linalg.norm(g) > 0 else new
            continue
        for i in range(len(g)):
            bound, length = clipping * max(np.linalg.norm(w[i]), eps), np.linalg.norm(g[i])
            if length > bound:
                new[i] = g[i] * bound / length
        out[name] = new
    return out


def autoclip(steps: Sequence[Arrays], percentile: float) -> list[Arrays]:
    history: list[float] = []
    out = []
    for grads in steps:
        norm = total_norm(grads)
        history.append(norm)
        out.append(scaled(grads, min(1.0, np.percentile(history, percentile) / norm)))
    return out


def zclip(steps: Sequence[Arrays], alpha: float, score: float, warmup: int, most: float, eps: float) -> list[Arrays]:
    buffer: list[float] = []
    mean = variance = 0.0
    out = []
    for grads in steps:
        norm = kept = total_norm(grads)
        if len(buffer) < warmup:
            buffer.append(norm)
            mean, variance = float(np.mean(buffer)), float(np.var(buffer))
        else:
            spread = math.sqrt(variance)
            z = (norm - mean) / (spread + eps)
            if z > score:
                kept = mean + score * spread / (z / score)
            mean = alpha * mean + (1 - alpha) * kept
            variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        out.append(scaled(grads, min(1.0, min(kept, most) / norm)))
    return out


def adagc(steps: Sequence[Arrays], relative: float, absolute: float, beta: float, warmup: int) -> list[Arrays]:
    average: dict[str, float] = {}
    out = []
    for t, grads in enumerate(steps, 1):
        norm, new = total_norm(grads), {}
        for name, g in grads.items():
            length = float(np.linalg.norm(g))
            if t < warmup:
                h = min(1.0, absolute / norm)
                average[name] = min(average.get(name, math.inf), h * length)
            else:
                h = min(1.0, relative * average[name] / length)
                average[name] = beta * average[name] + (1 - beta) * h * length
            new[name] = h * g
        out.append(new)
    return out


def spam(steps: Sequence[Arrays], factor: float, beta: float, warmup: int) -> list[Arrays]:
    squares = {name: np.zeros_like(g) for name, g in steps[0].items()}
    out = []
    for t, grads in enumerate(steps, 1):
        new = {}
        for name, g in grads.items():
            v, cut = squares[name], g
            if t >= warmup:
                spike = (g**2 > factor * v) & (v > 0)
                cut = np.where(spike, np.sign(g) * np.sqrt(factor * v), cut)
            squares[name] = beta * v + (1 - beta) * cut**2
            new[name] = cut
        out.append(new)
    return out


def stable_spam(steps: Sequence[Arrays], theta: float, first: float, second: float, eps: float) -> list[Arrays]:
    state = {name: [0.0, 0.0, 0.0] for name in steps[0]}
    out = []
    for t, grads in enumerate(steps, 1):
        new = {}
        for name, g in grads.items():
            largest, mean, square = state[name]
            top = np.abs(g).max()
            largest = theta * largest + (1 - theta) * top
            bound = largest / (1 - theta**t)
            cut = np.where(np.abs(g) > bound, g / top * bound, g)
            length = float(np.linalg.norm(cut))
            mean = first * mean + (1 - first) * length
            square = second * square + (1 - second) * length**2
            target = (mean / (1 - first**t)) / (math.sqrt(square / (1 - second**t)) + eps)
            new[name], state[name] = cut / length * target, [largest, mean, square]
        out.append(new)
    return out


def smooth(grads: Arrays, tau: float) -> Arrays:
    return scaled(grads, tau / (total_norm(grads) + tau))


def delta_clip(grads: Arrays, tau: float, least: float) -> Arrays:
    return scaled(grads, min(1.0, max(least, tau / total_norm(grads))))


def u_clip(steps: Sequence[Arrays], tau: float) -> list[Arrays]:
    carried = {name: np.zeros_like(g) for name, g in steps[0].items()}
    out = []
    for grads in steps:
        whole = {name: g + carried[name] for name, g in grads.items()}
        used = scaled(whole, min(1.0, tau / total_norm(whole)))
        carried = {name: whole[name] - used[name] for name in whole}
        out.append(used)
    return out


def sgd_updates(steps: Sequence[Arrays], momentum: float) -> list[Arrays]:
    """What SGD with momentum adds, per unit of learning rate."""
    buffer = {name: np.zeros_like(g) for name, g in steps[0].items()}
    out = []
    for grads in steps:
        buffer = {name: momentum * buffer[name] + g for name, g in grads.items()}
        out.append(dict(buffer))
    return out


def mix_clip(steps: Sequence[Arrays], tau: float, mix: float, momentum: float) -> list[Arrays]:
    average = {name: np.zeros_like(g) for name, g in steps[0].items()}
    out = []
    for grads in steps:
        average = {name: momentum * average[name] + (1 - momentum) * g for name, g in grads.items()}
        of_m, of_g = (min(1.0, tau / total_norm(part)) for part in (average, grads))
        out.append({name: mix * of_m * average[name] + (1 - mix) * of_g * g for name, g in grads.items()})
    return out


def rms_clip(steps: Sequence[Arrays], momentum: float, beta: float, eps: float) -> list[Arrays]:
    squares = {name: np.zeros_like(g) for name, g in steps[0].items()}
    out = []
    for t, (grads, updates) in enumerate(zip(steps, sgd_updates(steps, momentum), strict=True), 1):
        new = {}
        for name, g in grads.items():
            debiased = beta * (1 - beta ** (t - 1)) / (1 - beta**t)
            squares[name] = debiased * squares[name] + (1 - debiased) * g**2
            ratio = math.sqrt(float((g**2 / np.maximum(squares[name], eps**2)).mean()))
            new[name] = updates[name] / max(1.0, ratio)
        out.append(new)
    return out


def medoid(rows: np.ndarray) -> np.ndarray:
    """The row (M, p) with the smallest sum of distances to all."""
    sums = [sum(float(np.linalg.norm(row - other)) for other in rows) for row in rows]
    return rows[int(np.argmin(sums))]
