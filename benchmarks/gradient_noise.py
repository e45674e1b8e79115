"""How noisy is the gradient of each estimator, on a real model's own trajectories, with exact per-sequence gradients.

    python benchmarks/gradient_noise.py MODEL TRAJECTORIES [--version V] [--most N] [--sketch 2048]

MODEL is a Hugging Face folder (a run's checkpoint), TRAJECTORIES a run's trajectories.jsonl; of these the ones that
policy V sampled are taken (default: the newest version of which there are 64). g_i = Σ_t ∇log π over the action tokens
of trajectory i is computed one by one; |g_i|² is exact, inner products come from a count sketch. Noise of A_i·g_i:
tr Cov(A g), relative to that of the batch mean. With it: what the energies Σ(1 − π)² explain of |g|².
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from solostream.agent.trajectory import Trajectory
from solostream.agent.trajectory_file import read_lines
from solostream.training.advantages.stream.energy_ratio import EnergyRatio
from solostream.training.advantages.stream.measure import energy

LEAST = 64  # trajectories of one policy


def gradients(model: torch.nn.Module, batch: Sequence[Trajectory], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(squared norms [n], sketches [n, size]) of Σ_t ∇log π(token_t), one trajectory after the other."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    n = sum(p.numel() for p in parameters)
    place = torch.randint(size, (n,), generator=generator)
    sign = torch.randint(2, (n,), generator=generator, dtype=torch.float32) * 2 - 1
    norms, sketches = [], []
    for trajectory in batch:
        ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]
        acted = torch.from_numpy(trajectory.action_mask[1:])
        logprob = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        found = torch.autograd.grad(logprob[acted].sum(), parameters)
        flat = torch.cat([g.reshape(-1) for g in found])
        norms.append(float(flat.square().sum()))
        sketches.append(torch.zeros(size).index_add(0, place, sign * flat).numpy())
    return np.array(norms), np.array(sketches, np.float64)


def noise(advantage: np.ndarray, norms: np.ndarray, sketches: np.ndarray) -> float:
    """tr Cov of A_i·g_i: E|A g|² − |E A g|²."""
    mean = (advantage[:, None] * sketches).mean(0)
    return float((advantage**2 * norms).mean() - (mean**2).sum())


def estimators(batch: Sequence[Trajectory]) -> dict[str, np.ndarray]:
    """Name -> advantage of each trajectory [n], unscaled."""
    r = np.array([t.reward for t in batch])
    tokens = np.array([float(t.n_action_tokens) for t in batch])
    energies = np.array([energy(t) for t in batch])
    centre: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a, w: a - (w * a).sum() / w.sum()
    ones = np.ones(len(r))
    found = {"batch mean": centre(r, ones), "none": r, "length (OPO)": centre(r, tokens), "energy": centre(r, energies)}
    if all(t.dispatch.value is not None for t in batch):
        v = np.array([t.dispatch.value for t in batch], np.float64)
        ratio = EnergyRatio()
        ratio.update(r.tolist(), energies.tolist())
        b = np.array([ratio.baseline(x) for x in v])
        found["SPO (Eq. 9)"], found["SPO, tokens"] = centre(r - v, ones), centre(r - v, tokens)
        found["r − v, energy"], found["r − b, energy"] = centre(r - v, energies), centre(r - b, energies)
    return found


def chosen(path: Path, version: int | None, most: int) -> list[Trajectory]:
    """What one policy sampled from beginning to end."""
    everything = [line.trajectory for line in read_lines(path) if line.trajectory is not None]
    whole = [t for t in everything if t.n_action_tokens and len(set(t.versions[t.action_mask].tolist())) == 1]
    of = lambda t: int(t.versions[t.action_mask][0])
    counts = Counter(map(of, whole))
    enough = [v for v, n in counts.items() if n >= LEAST]
    if version is None and not enough:
        raise SystemExit(f"{path} has no policy with {LEAST} trajectories; name one with --version: {dict(counts)}")
    wanted = max(enough) if version is None else version
    return [t for t in whole if of(t) == wanted][:most]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("trajectories", type=Path)
    options.add_argument("--version", type=int)
    options.add_argument("--most", type=int, default=384)
    options.add_argument("--sketch", type=int, default=2048)
    a = options.parse_args()
    batch = chosen(a.trajectories, a.version, a.most)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    norms, sketches = gradients(model, batch, a.sketch)
    right = np.array([t.reward > 0.5 for t in batch])
    r = np.array([t.reward for t in batch])
    mean = lambda x, of: float(x[of].mean()) if of.any() else float("nan")
    print(f"{len(batch)} trajectories, {right.mean():.2f} right")
    print(f"mean |g|²: right {mean(norms, right):,.0f}, wrong {mean(norms, ~right):,.0f}")
    print(f"baseline of least noise {(norms * r).sum() / norms.sum():.2f}, mean reward {r.mean():.2f}")
    energies = np.array([energy(t) for t in batch])
    print(f"correlation of |g|² with energy {np.corrcoef(norms, energies)[0, 1]:.2f}")
    plain = noise(r - r.mean(), norms, sketches)
    for name, advantage in estimators(batch).items():
        print(f"{name:<16} {noise(advantage, norms, sketches) / plain:6.2f}")


if __name__ == "__main__":
    main()
