"""The training that the examples of ``docs/steps.md`` change one line of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from pytest_gradcheck import Training, check_step

STEP = "opt.zero_grad(); loss(batch).backward(); opt.step()"


class Upwards(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.update(p, group["lr"])

    def update(self, p, lr):
        if p.grad is not None:
            p.add_(p.grad, alpha=lr)


ADAMW = """
m = b1 * m + (1 - b1) * g
v = b2 * v + (1 - b2) * g * g
p = p - lr * wd * p
p = p - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
"""


class ByHand(torch.optim.Optimizer):
    """The rule that a text says, with what it calls m, v, x and t as its state."""

    def __init__(self, params, rule=ADAMW, lr=1e-2, weight_decay=0.1, **others):
        given = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **given, **others})
        self.rule = compile(rule, "rule", "exec")

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    zero = torch.zeros_like(p)
                    state |= {"m": zero, "v": zero, "x": zero, "t": 0}
                if p.grad is not None:
                    state["t"] += 1
                b1, b2 = group["betas"]
                names = {"g": p.grad, "p": p.detach().clone(), "b1": b1, "b2": b2, "torch": torch}
                names |= {"lr": group["lr"], "eps": group["eps"], "wd": group["weight_decay"]}
                names |= {"first": p is group["params"][0], "raw": p} | state
                if p.grad is None:
                    self.without(p, group)
                    continue
                exec(self.rule, names)
                state |= {name: names[name] for name in state}
                p.copy_(names["p"])

    def without(self, p, group):
        """A parameter without gradient is left alone."""


class DecayingAll(ByHand):
    def without(self, p, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])


class Swapping(torch.optim.Adam):
    def load_state_dict(self, state):
        one, other = state["state"][1], state["state"][3]
        one["exp_avg"], other["exp_avg"] = other["exp_avg"].expand(6).clone(), one["exp_avg"][:1]
        super().load_state_dict(state)


class Restless(Upwards):
    def update(self, p, lr):
        p.mul_(0.999)
        if p.grad is not None:
            p.sub_(p.grad, alpha=lr)


class Rude(Upwards):
    def update(self, p, lr):
        if p.grad is not None:
            p.add_(p.grad.mul_(-lr))


class Idle(Upwards):
    def update(self, p, lr):
        p.clone().sub_(p, alpha=lr)


class Forgetful(torch.optim.Adam):
    def load_state_dict(self, state):
        for each in state["state"].values():
            each["exp_avg"] = torch.zeros_like(each["exp_avg"])
        super().load_state_dict(state)


OPTIMIZERS = {
    **{n: getattr(torch.optim, n) for n in ("AdamW", "Adam", "SGD", "RMSprop", "Rprop")},
    **{
        c.__name__: c
        for c in (Upwards, Restless, Rude, Forgetful, Idle, ByHand, DecayingAll, Swapping)
    },
}


BY_HAND = (
    "model.zero_grad(); loss(batch).backward(); place([p.detach() - 0.1 * p.grad for p in params])"
)


def loop(
    body,
    *,
    optimizer="AdamW(params, 1e-2)",
    claimed=None,
    forward="model(x)",
    act="",
    first="",
    sizes=(8, 5, 8, 3),
    batches=None,
    is_handed=True,
    seed=0,
    **claims,
):
    """The result of a check of a training whose step is the text ``body``.

    Its optimizer may be one that is not handed over.
    """

    def training():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        params = list(model.parameters())
        names = {"model": model, "params": params, "torch": torch, "nn": nn, **OPTIMIZERS}
        names |= {"memory": {}, "number": 0, "clip": lambda ps, c: nn.utils.clip_grad_norm_(ps, c)}
        exec(first, names)
        dtype = params[0].dtype
        made = [(torch.randn(n, 4).to(dtype), torch.randn(n, 1).to(dtype)) for n in sizes]
        opt = eval(optimizer, names)
        names["opt"] = opt[0] if isinstance(opt, tuple) else opt
        if names["opt"] is not None:
            names["sched"] = torch.optim.lr_scheduler.LambdaLR(names["opt"], lambda t: 0.9**t)

        def loss(batch):
            names["x"], names["batch"] = batch[0], batch
            names["value"] = nn.functional.mse_loss(eval(forward, names), batch[1])
            exec(act, names)
            return names["value"]

        def share(count, epoch=None):
            """Samples of this call over those of its window; an epoch ends a window."""
            epoch = epoch or len(sizes)
            place = (names["number"] - 1) % epoch if epoch % count else names["number"] - 1
            start = place // count * count
            total = sum(sizes[k % len(sizes)] for k in range(start, start + count))
            return sizes[place % len(sizes)] / total

        def put(grads):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.detach().clone()

        def place(values):
            for p, x in zip(params, values, strict=True):
                p.data.copy_(x)

        names |= {
            "loss": loss,
            "share": share,
            "put": put,
            "place": place,
            "grads": lambda: [p.grad.clone() for p in params],
            "values": lambda: [p.detach().clone() for p in params],
            "finite": lambda: all(p.grad.isfinite().all() for p in params),
        }

        def step(batch):
            names["number"] += 1
            names["batch"] = batch
            exec(body, names)

        handed = opt if is_handed else None
        return Training(step=step, loss=loss, batches=made[:batches], model=model, optimizer=handed)

    if claimed is not None:
        claims["optimizer"] = claimed
    return check_step(training, **claims)


def optax_loop(body, is_other=False):
    """The result of a check of a JAX training with one line between optax and the parameters.

    It may use another transformation than the one that is handed over.
    """

    def training():
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), "b": jnp.zeros(2)}
        tx, memory = optax.adam(1e-2), []
        used = optax.adam(1e-2) if is_other else tx
        batches = [tuple(np.float32(rng.normal(size=(6, n))) for n in (4, 2)) for _ in range(3)]

        def loss(params, batch):
            return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)

        def step(params, state, batch):
            grads = jax.grad(loss)(params, batch)
            updates, state = used.update(grads, state, params)
            names = {"updates": updates, "jax": jax, "memory": memory}
            exec(body, names)
            return optax.apply_updates(params, names["updates"]), state

        state = tx.init(params)
        return Training(
            step=step, loss=loss, batches=batches, params=params, opt_state=state, optimizer=tx
        )

    return check_step(training)
