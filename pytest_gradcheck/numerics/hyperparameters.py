"""The hyperparameters that each rule has: what else is claimed of it, nothing would check."""

from __future__ import annotations

TAKES: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adam": ("betas", "eps", "amsgrad"),
    "adamw": ("betas", "eps", "amsgrad"),
    "adamax": ("betas", "eps"),
    "nadam": ("betas", "eps", "momentum_decay"),
    "nadamw": ("betas", "eps", "momentum_decay"),
    "radam": ("betas", "eps"),
    "rmsprop": ("alpha", "eps", "centered", "momentum"),
    "adagrad": ("eps", "lr_decay", "initial_accumulator_value"),
    "adadelta": ("eps", "rho"),
    "lion": ("betas",),
    "lamb": ("betas", "eps"),
    "lars": ("momentum", "nesterov", "trust_coefficient"),
    "muon": ("momentum", "nesterov", "eps", "ns_coefficients", "ns_steps", "adjust_lr_fn"),
}
TAKES = {rule: ("lr", "weight_decay", "decay", "maximize", *names) for rule, names in TAKES.items()}
