"""Training steps of JAX on a device that is not the CPU: here the second of two on the CPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("optax")

LOOP = """
import jax, jax.numpy as jnp, numpy as np, optax
from pytest_gradcheck import Training, check_step

jax.config.update("jax_default_device", jax.devices()[1])
tx = optax.with_extra_args_support(
    optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, weight_decay=0.1))
)
rng = np.random.default_rng(0)

def loss(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params["w"] + params["b"]) - batch[1]) ** 2)

@jax.jit
def step(params, state, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, state = tx.update(grads, state, params, **GIVEN)
    return optax.apply_updates(params, updates), state

params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)}
batches = [tuple(np.float32(rng.normal(size=(8, n))) for n in (4, 3)) for _ in range(3)]
result = check_step(
    Training(step=step, loss=loss, batches=batches, params=params, opt_state=tx.init(params),
             optimizer=tx), **CLAIMS)
print(result.verdict, result.context.device, result.headline)
"""
CLAIMED = "optimizer='adamw', lr=1e-2, weight_decay=0.1, max_norm=0.5"


@pytest.mark.parametrize(
    ("given", "claims"), [("", ""), ("value=value", CLAIMED)], ids=["plain", "claimed"]
)
def test_what_comes_out_of_a_callback_goes_where_the_parameters_are(given, claims):
    flags = "--xla_force_host_platform_device_count=2"
    run = subprocess.run(
        [sys.executable, "-c", LOOP.replace("**GIVEN", given).replace("**CLAIMS", claims)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.startswith("pass cpu:1"), run.stdout + run.stderr[-2000:]
