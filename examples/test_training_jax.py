"""Training in JAX: a compiled step with optax, as optax says and as claimed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pytest_gradcheck import Training

RATE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 20)


def training():
    rng = np.random.default_rng(0)
    params = {
        "hidden": {"w": 0.5 * rng.normal(size=(6, 8)), "b": np.zeros(8)},
        "head": {"w": 0.5 * rng.normal(size=(8, 2)), "b": np.zeros(2)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(RATE, weight_decay=0.1))
    batches = [(rng.normal(size=(16, 6)), rng.integers(0, 2, 16)) for _ in range(4)]

    def loss(params, batch):
        x, labels = batch
        hidden = jax.nn.gelu(x @ params["hidden"]["w"] + params["hidden"]["b"])
        logits = hidden @ params["head"]["w"] + params["head"]["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, opt_state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    state = tx.init(params)
    parts = {"loss": loss, "batches": batches, "params": params, "opt_state": state}
    return Training(step=step, optimizer=tx, **parts)


def test_as_optax_says(gradstep):
    gradstep(training)


def test_as_claimed(gradstep):
    gradstep(
        training,
        optimizer="adamw",
        weight_decay=0.1,
        schedule=lambda t: float(RATE(t)),
        max_norm=0.5,
    )


def test_clips_of_optax(gradclip):
    gradclip(optax.clip_by_global_norm(0.5), max_norm=0.5, dtypes=["float32"])
    gradclip(optax.clip(0.1), max_value=0.1, dtypes=["float32"])
