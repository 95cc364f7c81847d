"""A training function of your own: a small network learns to tell two spirals apart.

Type `hpo start examples/own_training.yaml` in the folder above to search its settings. Everything
random comes from the seed and the step. So a trial that was killed, and goes on from its
checkpoint, reports the same as without the kill.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hpo.training import TrainingRun


def spirals(points: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw points in the plane (N, 2), and the spiral, 0 or 1, on which each lies (N,)."""
    random = torch.Generator().manual_seed(seed)
    turn = 1.75 * 2 * torch.pi * torch.rand(points, generator=random).sqrt()
    side = torch.randint(2, (points,), generator=random)
    angle = turn + torch.pi * side
    place = torch.stack((angle.cos(), angle.sin()), dim=1) * turn[:, None] / 5
    return place + noise * torch.randn(points, 2, generator=random), side


def train(config: dict[str, Any], run: TrainingRun) -> Iterator[dict[str, float]]:
    """Train one trial, and yield its error on held-out points, in percent, at each evaluation."""
    seed, width = config["seed"], config["model"]["width"]
    places, sides = (each.to(run.device) for each in spirals(2000, config["noise"], seed=1))
    valid_places, valid_sides = (each.to(run.device) for each in spirals(1000, 0.0, seed=2))

    torch.manual_seed(seed)
    layers = [nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 2)).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), **config["optim"])

    done = 0
    if run.restored is not None:  # an earlier attempt at this trial left a checkpoint
        done, folder = run.restored
        state = torch.load(folder / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    for step in range(done + 1, config["steps"] + 1):
        chosen = torch.Generator().manual_seed(seed + step)
        batch = torch.randint(len(places), (config["batch_size"],), generator=chosen)
        loss = nn.functional.cross_entropy(model(places[batch]), sides[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.tick(step)

        if step % config["eval_every"] == 0 or step == config["steps"]:
            with torch.no_grad():
                wrong = model(valid_places).argmax(dim=1) != valid_sides
            with run.checkpoint(step) as folder:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, folder / "state.pt")
            error = 100 * wrong.double().mean().item()
            yield {"step": step, "valid_error": error, "train_loss": loss.item()}
