"""Training in PyTorch: the step as it is in the script, and the clip that it uses.

``training()`` builds everything afresh; the fixture runs the step over an epoch and holds the
gradients that the optimizer gets, and what it does with them, against fresh ones.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it
from torch.nn.utils import clip_grad_norm_

from pytest_gradcheck import Training


class Classifier(nn.Module):
    """An embedding that is frozen, a recurrent layer with dropout, a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8).requires_grad_(False)
        self.cell = nn.GRU(8, 12, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens):
        states, _ = self.cell(self.embed(tokens))
        return self.head(self.drop(states[:, -1]))


def batches_of(sizes):
    return [(torch.randint(0, 20, (n, 6)), torch.randint(0, 3, (n,))) for n in sizes]


def training():
    torch.manual_seed(0)
    model = Classifier()
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 4))

    def loss(batch):
        tokens, labels = batch
        return F.cross_entropy(model(tokens), labels)

    def step(batch):
        optimizer.zero_grad()
        loss(batch).backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()

    batches = batches_of((16, 16, 16, 5))
    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_step(gradstep):
    gradstep(
        training,
        max_norm=0.5,
        frozen="embed.*",
        no_decay="*bias*",
        schedule=[3e-3 * min(1.0, (t + 1) / 4) for t in range(7)],
    )


def accumulating():
    """Two batches of unequal size to an update, each sample counting the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    batches = [(torch.randn(n, 6), torch.randn(n, 1)) for n in (16, 9, 16, 3)]
    waiting = []

    def loss(batch):
        x, y = batch
        return F.mse_loss(model(x), y)

    def step(batch):
        waiting.append(batch)
        if len(waiting) < 2:
            return
        samples = sum(len(x) for x, _ in waiting)
        optimizer.zero_grad()
        for x, y in waiting:
            (loss((x, y)) * len(x) / samples).backward()
        optimizer.step()
        waiting.clear()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_accumulation(gradstep):
    gradstep(accumulating, accumulate=2)


def mixed_precision():
    """A gradient scaler: unscale, then clip, then step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    batches = [(torch.randn(8, 6), torch.randn(8, 1)) for _ in range(4)]

    def loss(batch):
        x, y = batch
        return F.mse_loss(model(x), y)

    def step(batch):
        optimizer.zero_grad()
        scaler.scale(loss(batch)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 0.2)
        scaler.step(optimizer)
        scaler.update()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def test_scaler(gradstep):
    gradstep(mixed_precision, max_norm=0.2, loss_scale=256.0, nonfinite="skip")


def test_clip(gradclip):
    gradclip(clip_grad_norm_, max_norm=0.5)


def test_clip_of_the_model(gradclip):
    model = Classifier()
    gradclip(lambda params: clip_grad_norm_(params, 0.5), params=model, max_norm=0.5)
