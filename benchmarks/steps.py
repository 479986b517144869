"""Training steps: seeded faults, right loops, vacuous set-ups, power and cost.

Run: ``python benchmarks/steps.py [--only faults right vacuous power cost]
[--backend torch jax numpy] [--seed N] [--float32] [--seeds N] [--every N] [--spare] [--cuda]
[--tf32] [--list]``; one thread, default limits. With ``--cuda`` the trainings in torch are on a
GPU, with products in TF32 where asked for, and times are the clock's; they are the processor's
otherwise. JAX takes a GPU where it finds one. ``--seed`` and ``--float32`` are for faults,
``--seeds`` for right loops and power, ``--every`` for right loops.

Incumbents beside the faults: the loss is lower after 20 steps, 1.5 times lower after 60, every
parameter has changed after one epoch, and the training assertions of pytest-torch
(``assert_optimizer_coverage``, ``assert_all_params_receive_grad``, ``assert_loss_decreases``).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import numpy as np
import optax
import torch
from corpora import (
    steps_functional,
    steps_loops_odd,
    steps_power,
    steps_right,
    steps_torch,
    steps_vacuous,
)
from corpora.steps_torch import Fault

from pytest_gradcheck import Training, check_step
from pytest_gradcheck.checks.steps import spared

FAULTS: dict[str, Callable[[], list[Fault]]] = {
    "torch": steps_torch.faults,
    "jax": lambda: steps_functional.faults_of("jax"),
    "numpy": lambda: steps_functional.faults_of("numpy"),
}


def torch_right(seeds: int) -> Iterator[Any]:
    """Optimizers in every form, and loops that are easily accused."""
    yield from steps_right.torch_trainings(seeds)
    yield from steps_loops_odd.right_loops()


RIGHT = {
    "torch": (torch_right, 2),
    "jax": (steps_right.jax_trainings, 1),
    "numpy": (steps_right.numpy_trainings, 60),
}

FACTORS = (1.0, 1.1, 1.2, 0.7)  # of a gradient, to be seen


class Trained:
    """A training run by itself, as incumbents see it."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.batches = list(training.batches)
        self.params, self.state, self.calls = training.params, training.opt_state, 0

    def loss(self) -> float:
        """The loss on the first batch."""
        if self.training.model is not None:
            return float(self.training.loss(self.batches[0]))
        return float(self.training.loss(self.params, self.batches[0]))

    def values(self) -> list[np.ndarray]:
        """Every parameter."""
        if self.training.model is not None:
            return [
                p.detach().double().cpu().numpy().copy() for p in self.training.model.parameters()
            ]
        return [np.array(x, dtype=np.float64) for x in jax.tree.leaves(self.params)]

    def run(self, steps: int) -> None:
        """Some calls of the step."""
        for _ in range(steps):
            batch = self.batches[self.calls % len(self.batches)]
            self.calls += 1
            if self.training.model is not None:
                self.training.step(batch)
            else:
                self.params, self.state, *_ = self.training.step(self.params, self.state, batch)


def lower(training: Training, steps: int, factor: float) -> bool:
    """Whether the loss does not fall by a factor."""
    trained = Trained(training)
    start = trained.loss()
    trained.run(steps)
    return not trained.loss() * factor < start


def unchanged(training: Training) -> bool:
    """Whether some parameter does not change in an epoch."""
    trained = Trained(training)
    before = trained.values()
    trained.run(len(trained.batches))
    return any(np.array_equal(a, b) for a, b in zip(before, trained.values(), strict=True))


def pytest_torch(training: Training) -> bool:
    """Whether a training assertion of pytest-torch fails."""
    from pytest_torch import training as assertions
    from pytest_torch import training_loop

    if training.model is None:
        return False
    x, y = next(iter(training.batches))

    def loss(output: Any, *_: Any) -> Any:
        return torch.nn.functional.mse_loss(output, y)

    training_loop.assert_optimizer_coverage(training.model, training.optimizer)
    assertions.assert_all_params_receive_grad(training.model, x, loss)
    assertions.assert_loss_decreases(training.model, x, loss, lr=1e-2)
    return False


INCUMBENTS: dict[str, Callable[[Training], bool]] = {
    "loss lower after 20": lambda t: lower(t, 20, 1.0),
    "1.5x lower after 60": lambda t: lower(t, 60, 1.5),
    "every parameter changed": unchanged,
    "pytest-torch": pytest_torch,
}


def alarmed(check: Callable[[Training], bool], build: Callable[[], Training]) -> bool:
    """Whether an incumbent says no, in whatever way."""
    try:
        return check(build())
    except Exception:  # it may raise anything; it counts
        return True


def varied(build: Any, seed: int, is_narrow: bool) -> Any:
    """The same training drawn from another seed, in float32 where asked for."""
    if not dataclasses.is_dataclass(build):
        return build
    known = {f.name for f in dataclasses.fields(build)}
    is_wide = is_narrow and "dtype" in known and build.dtype is torch.float64
    changes: dict[str, Any] = {"dtype": torch.float32} if is_wide else {}
    return dataclasses.replace(build, **changes, **({"seed": seed} if "seed" in known else {}))


def faults(backend: str, listing: bool, incumbents: bool, seed: int, is_narrow: bool) -> None:
    """Print what is caught of the seeded faults, and by whom."""
    count: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    news = []
    for fault in FAULTS[backend]():
        if seed or is_narrow:
            fault = dataclasses.replace(
                fault,
                training=varied(fault.training, seed, is_narrow),
                right=varied(fault.right, seed, is_narrow),
            )
        count["all"] += 1
        result = check_step(fault.training, **fault.claims)
        caught = result.verdict in ("fail", "vacuous")
        count["caught"] += caught
        is_named = caught and bool(re.search(fault.first, result.headline))
        count["first line"] += is_named
        if not is_named:
            news.append(f"  {fault.name}: {result.verdict}: {result.headline}")
        if fault.right is not None:
            right = check_step(fault.right, **fault.claims)
            alarms["ours"] += right.verdict != "pass"
            if right.verdict != "pass":
                news.append(f"  the same without {fault.name}: {right.headline}")
        for name, check in INCUMBENTS.items() if incumbents else ():
            count[name] += alarmed(check, fault.training)
            alarms[name] += fault.right is not None and alarmed(check, fault.right)
    print(f"\n### {backend}: {count['all']} seeded faults, and the same loops without them\n")
    print("| check | caught | first line right | alarms on the right loop |\n|---|---|---|---|")
    print(f"| gradstep | {count['caught']} | {count['first line']} | {alarms['ours']} |")
    for name in INCUMBENTS if incumbents else ():
        if backend == "torch" or name != "pytest-torch":
            print(f"| {name} | {count[name]} | - | {alarms[name]} |")
    if listing and news:
        print("\nnot caught, or otherwise named, or accused:", *news, sep="\n")


def right(backend: str, seeds: int | None, every: int, listing: bool) -> None:
    """Print how many right loops are accused."""
    make, usual = RIGHT[backend]
    verdicts: Counter[str] = Counter()
    warned, news, began = 0, [], time.perf_counter()
    for name, build, claims in itertools.islice(make(seeds or usual), 0, None, every):
        result = check_step(build, **claims)
        verdicts[result.verdict] += 1
        warned += any(f.severity == "warn" for f in result.findings)
        if result.verdict != "pass":
            news.append(f"  {name}: {result.verdict}: {result.headline}")
    seconds = time.perf_counter() - began
    total = sum(verdicts.values())
    print(
        f"| {backend} | {total} | {verdicts['fail']} | {verdicts['undecided']} | "
        f"{verdicts['vacuous']} | {warned} | {1e3 * seconds / total:.0f} |"
    )
    if listing or news:
        print(*news, sep="\n")


def vacuous() -> None:
    """Print what is said of each vacuous set-up."""
    print("\n### vacuous set-ups\n\n| set-up | verdict | said |\n|---|---|---|")
    for name, check in steps_vacuous.setups():
        result = check()
        told = [f.code for f in result.findings if f.severity != "note"]
        print(f"| {name} | {result.verdict} | {', '.join(dict.fromkeys(told)) or 'NOTHING'} |")


def power(seeds: int) -> None:
    """Print how often one wrong gradient of a network is seen, and a right one accused."""
    print("\n### one tensor's gradient times a factor, float32\n")
    print("| network | " + " | ".join(f"times {f:g}" for f in FACTORS) + " |")
    print("|---" * (1 + len(FACTORS)) + "|")
    for name in steps_power.NETWORKS:
        found = []
        for factor in FACTORS:
            results = [check_step(build) for build in steps_power.trainings(name, factor, seeds)]
            fails = sum(r.verdict == "fail" for r in results)
            found.append(f"{fails} of {len(results)}")
        print(f"| {name} | {' | '.join(found)} |", flush=True)


class Counted:
    """A way to build a training that counts the calls of its step, and of its loss outside."""

    def __init__(self, build: Callable[[], Training]) -> None:
        self.build = build
        # Iterators, since plain numbers are set back after a check like all else.
        self.steps, self.losses, self.inside = (itertools.count() for _ in range(3))

    def __call__(self) -> Training:
        made = self.build()
        is_inside: list[int] = []

        def step(*args: Any) -> Any:
            next(self.steps)
            is_inside.append(1)
            try:
                return made.step(*args)
            finally:
                is_inside.pop()

        def loss(*args: Any) -> Any:
            next(self.inside if is_inside else self.losses)
            return made.loss(*args)

        return Training(**{**vars(made), "step": step, "loss": loss})


def now() -> float:
    """Seconds of the processor, or of the clock where it waits for a GPU."""
    if torch.get_default_device().type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def cost(name: str, build: Callable[[], Training], claims: dict[str, Any]) -> None:
    """Print the time of a check over that of a step, and of the first epoch as it is built."""
    counted = Counted(build)
    check_step(counted, **claims)  # imports are not what is compared
    seconds, each, first = [], [], []
    for _ in range(5):
        trained = Trained(build())
        began = now()
        trained.run(7)
        trained.values()
        first.append(now() - began)
        began = now()
        trained.run(14)
        trained.values()
        each.append((now() - began) / 14)
        began = now()
        check_step(build, **claims)
        seconds.append(now() - began)
    # The least of several: others use the machine too.
    check, step, own = (min(x) for x in (seconds, each, first))
    print(
        f"| {name} | {1e3 * step:.2f} | {1e3 * own:.0f} | {1e3 * check:.0f} | {check / step:.0f} | "
        f"{check / own:.1f} | {next(counted.steps)} | {next(counted.losses)} |"
    )


def torch_network(width: int, count: int) -> Callable[[], Training]:
    """AdamW on a network of three layers, seven batches."""

    def build() -> Training:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(width // 2, width), torch.nn.Tanh(), torch.nn.Linear(width, width),
            torch.nn.Tanh(), torch.nn.Linear(width, 10),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        batches = [(torch.randn(count, width // 2), torch.randn(count, 10)) for _ in range(7)]

        def loss(batch: Any) -> torch.Tensor:
            return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

        def step(batch: Any) -> None:
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()

        return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)

    return build


class Residual(torch.nn.Module):
    """Two convolutions with batch norm, and a way round them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = [torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        norms = [torch.nn.BatchNorm2d(channels) for _ in range(2)]
        self.inner = torch.nn.Sequential(parts[0], norms[0], torch.nn.ReLU(), parts[1], norms[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both, rectified."""
        return torch.relu(x + self.inner(x))


def torch_images(channels: int, count: int) -> Callable[[], Training]:
    """SGD with momentum on three residual blocks, images of 32 x 32, seven batches."""

    def build() -> Training:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 3, padding=1), *(Residual(channels) for _ in range(3)),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 10),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        batches = [
            (torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))) for _ in range(7)
        ]
        return _classified(model, optimizer, batches)

    return build


def torch_texts(width: int, count: int, length: int) -> Callable[[], Training]:
    """AdamW on a transformer of four layers with dropout, that tells the next token."""

    def build() -> Training:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True)
        model = torch.nn.Sequential(
            torch.nn.Embedding(256, width),
            torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False),
            torch.nn.Linear(width, 256),
        )
        optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
        texts = [torch.randint(0, 256, (count, length + 1)) for _ in range(7)]
        return _classified(model, optimizer, [(t[:, :-1], t[:, 1:]) for t in texts])

    return build


def _classified(model: Any, optimizer: Any, batches: list[Any]) -> Training:
    """The usual loop, with a cross entropy over the last axis."""

    def loss(batch: Any) -> torch.Tensor:
        scores = model(batch[0])
        return torch.nn.functional.cross_entropy(scores.flatten(0, -2), batch[1].flatten())

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return Training(step=step, loss=loss, batches=batches, model=model, optimizer=optimizer)


def jax_network(width: int, count: int, last: int) -> Callable[[], Training]:
    """The same with optax, compiled; the last batch may be short."""

    def build() -> Training:
        rng = np.random.default_rng(0)
        shapes = {"a": (width // 2, width), "b": (width, width), "c": (width, 10)}
        params = {k: np.float32(rng.normal(size=s) / s[0] ** 0.5) for k, s in shapes.items()}
        tx = optax.adamw(1e-3)
        sizes = [count] * 6 + [last]
        batches = [
            tuple(np.float32(rng.normal(size=(n, k))) for k in (width // 2, 10)) for n in sizes
        ]

        def loss(p: Any, batch: Any) -> Any:
            hidden = jax.numpy.tanh(jax.numpy.tanh(batch[0] @ p["a"]) @ p["b"])
            return jax.numpy.mean((hidden @ p["c"] - batch[1]) ** 2)

        @jax.jit
        def step(p: Any, state: Any, batch: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(p, batch), state, p)
            return optax.apply_updates(p, updates), state

        params = jax.tree.map(jax.numpy.asarray, params)
        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=tx.init(params),
            optimizer=tx,
        )  # fmt: skip

    return build


def costs(backend: str) -> None:
    """The cost on what is small, where all is bookkeeping, and on what is not."""
    hand = dict(steps_functional.CLAIMS)
    networks: dict[str, list[tuple[str, Callable[[], Training], dict[str, Any]]]] = {
        "torch": [
            ("torch, the small network of the faults", steps_torch.Setup(dtype=torch.float32), {}),
            ("torch, 29 k parameters, 64 samples", torch_network(128, 64), {}),
            ("torch, 400 k parameters, 512 samples", torch_network(512, 512), {}),
            ("torch, 1.6 M parameters, 1024 samples", torch_network(1024, 1024), {}),
            ("the same with step_fresh=7", torch_network(1024, 1024), {"step_fresh": 7}),
            ("torch, residual, 0.2 M parameters, 64 images", torch_images(64, 64), {}),
            ("torch, transformer, 3.3 M parameters, 16 x 64", torch_texts(256, 16, 64), {}),
        ],
        "jax": [
            (
                "jax, the small network, five sizes of batch",
                steps_functional.Setup(kind="jax"),
                hand,
            ),
            ("jax, 25 k parameters, one size", jax_network(128, 64, 64), {}),
            ("jax, 25 k parameters, a short last batch", jax_network(128, 64, 24), {}),
            ("jax, 398 k parameters, a short last batch", jax_network(512, 512, 100), {}),
        ],
        "numpy": [
            ("numpy, the small network, by differences", steps_functional.Setup(), hand),
        ],
    }
    for name, build, claims in networks[backend]:
        cost(name, build, claims)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("faults", "right", "vacuous", "power", "cost")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--backend", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seeds", type=int, default=None, help="seeds of right loops, of power")
    parser.add_argument("--every", type=int, default=1, help="each so many of the right loops")
    parser.add_argument("--seed", type=int, default=0, help="from which faults are drawn")
    parser.add_argument("--float32", action="store_true", help="torch's faults in float32")
    parser.add_argument("--no-incumbents", action="store_true")
    parser.add_argument("--spare", action="store_true", help="take all trainings for large ones")
    parser.add_argument("--cuda", action="store_true", help="torch's trainings on a GPU, alone")
    parser.add_argument("--tf32", action="store_true", help="products of float32 numbers in TF32")
    parser.add_argument("--list", action="store_true", help="name what is not as it should be")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = asked.tf32
    if asked.cuda:
        torch.set_default_device("cuda")
        asked.backend = ["torch"]
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    spared.LARGE = 0 if asked.spare else spared.LARGE
    if "faults" in asked.only:
        for backend in asked.backend:
            faults(backend, asked.list, not asked.no_incumbents, asked.seed, asked.float32)
    if "vacuous" in asked.only:
        vacuous()
    if "power" in asked.only:
        power(asked.seeds or 4)
    if "cost" in asked.only:
        print("\n### cost\n")
        print(
            "| training | one step, ms | first seven, ms | check, ms | over a step | over the "
            "first seven | steps | losses beside |\n|---|---|---|---|---|---|---|---|"
        )
        for backend in asked.backend:
            costs(backend)
    if "right" in asked.only:
        print("\n### right loops\n")
        print("| backend | loops | fail | undecided | vacuous | with a warning | ms a check |")
        print("|---|---|---|---|---|---|---|")
        for backend in asked.backend:
            right(backend, asked.seeds, asked.every, asked.list)


if __name__ == "__main__":
    main()
