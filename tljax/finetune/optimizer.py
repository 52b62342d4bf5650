"""Any optimizer of optax by name, one for each param, at a rate for each label."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tljax.finetune.groups import Groups
from tljax.finetune.kinds import is_decayed
from tljax.paths import did_you_mean

Arrays = dict[str, Any]

# The names of optax whose update is a learning rate times something that does not depend on it, so that schedules and
# multipliers may act on the update. Not so are, among others, rprop (the rate is where its steps start), polyak_sgd
# (the rate is a bound), lbfgs (a line search) and lars (momentum of what the rate has scaled).
OPTIMIZERS = (
    "adabelief", "adafactor", "adagrad", "adamax", "adamaxw", "adamw", "adan", "lamb", "lion",
    "nadamw", "novograd", "radam", "rmsprop", "sgd", "sign_sgd", "yogi",
)  # fmt: skip
# What is not the user's to set under `arguments`: it has a place of its own.
_GIVEN = ("learning_rate", "weight_decay", "weight_decay_rate", "mask", "weight_decay_mask")


# Arguments that optax applies behind the rate: a schedule would act on what they remember.
_SCALED = {"adafactor": ("momentum", "dtype_momentum"), "rmsprop": ("momentum", "nesterov")}


class OptimizerState(NamedTuple):
    """State of an optimizer over a flat dict.

    Args:
        params: {path: state of the optimizer of this param}, its own count of steps included: a param that joins later
            starts afresh, as Adam's bias correction wants, and one that stays keeps what it has.
        rates: of the schedules: how many steps they have taken.
    """

    params: Arrays
    rates: Any


def make_optimizer(
    groups: Groups,
    schedules: optax.Schedule | Mapping[str, optax.Schedule],
    *,
    name: str,
    weight_decay: float,
    clip_norm: float | None,
    arguments: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Build an optimizer over the dict of trained params.

    The update of a param is `multiplier * schedule(step)` times that of the optimizer at rate 1. So the multiplier
    scales a decoupled weight decay too, as in timm and unlike big_vision.

    Args:
        groups: of the params; frozen ones must not be in the dict that is optimized.
        schedules: learning rate as a function of the step, for all labels or for each.
        name: of `OPTIMIZERS`, with optax's defaults but for `arguments`.
        weight_decay: on matrices and kernels only; see `kinds.is_decayed`. Decoupled where the optimizer of optax has
            it (adamw, lion, lamb, ...); for the others (sgd, rmsprop, ...) it is added to the gradient, as in torch.
        clip_norm: bound on the norm of the gradient over all trained params together; None does not clip.
        arguments: of the optimizer, such as {"momentum": 0.9, "nesterov": True} of sgd, or {"mu_dtype": "bfloat16"}
            of adamw and lion, which halves the memory of the first moment. There is no such thing for the second: what
            a step adds to it is below the last bit of a bfloat16.

    Raises:
        ValueError: an unknown optimizer or argument, or a number out of range.
    """
    if weight_decay < 0 or (clip_norm is not None and clip_norm <= 0):
        raise ValueError(f"weight_decay {weight_decay} and clip_norm {clip_norm}: wanted >= 0, and > 0 or None")
    by_label = {label: schedules if callable(schedules) else schedules[label] for label in groups.multipliers}
    return scaled_optimizer(
        groups.labels, by_label, groups.multiplier, name=name, weight_decay=weight_decay, clip_norm=clip_norm,
        arguments=arguments,
    )  # fmt: skip


def scaled_optimizer(
    labels: Mapping[str, str],
    by_label: Mapping[str, optax.Schedule],
    multiplier: Callable[[str], Any],
    *,
    name: str,
    weight_decay: float | jax.Array,
    clip_norm: float | None,
    arguments: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Build what `make_optimizer` does from numbers that need not be known when a step is compiled.

    Args:
        labels: {path: label} of the trained params, at least.
        by_label: {label: learning rate as a function of the step}.
        multiplier: path -> factor on that rate.
        name: as for `make_optimizer`.
        weight_decay: likewise; not checked.
        clip_norm: likewise; not checked.
        arguments: likewise.
    """
    decayed, plain = (_optimizer(name, decay, arguments or {}) for decay in (weight_decay, 0.0))
    rates = optax.multi_transform(
        {label: optax.scale_by_schedule(schedule) for label, schedule in by_label.items()},
        lambda params: {path: labels[path] for path in params},
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)

    def of_path(path: str, param: Any) -> optax.GradientTransformation:
        return decayed if is_decayed(path, param.ndim) else plain

    # Annotations as optax has them are for any tree; these are flat dicts.
    def init(params: Any) -> Any:
        return OptimizerState(
            params={path: of_path(path, param).init(param) for path, param in params.items()}, rates=rates.init(params)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("update wants the params too: decay and trust ratios depend on them")
        # Bias corrections take a float to an integer power, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            grads: Any = clip.update(updates, optax.EmptyState())[0]
            moved = {
                path: of_path(path, grad).update(grad, state.params[path], params[path]) for path, grad in grads.items()
            }
            scaled: Any = rates.update({path: change for path, (change, _) in moved.items()}, state.rates)
        changes, rates_state = scaled
        changes = {path: multiplier(path) * change for path, change in changes.items()}
        states = {path: own for path, (_, own) in moved.items()}
        return changes, OptimizerState(params=states, rates=rates_state)

    return optax.GradientTransformation(init, update)


def carry_over(before: OptimizerState, fresh: OptimizerState) -> OptimizerState:
    """Give params that go on being trained the state that they had; the schedules start again."""

    def shapes(state: Any) -> Any:
        return jax.tree.map(jnp.shape, state)

    kept = {
        path: before.params[path]
        for path, state in fresh.params.items()
        if path in before.params and shapes(before.params[path]) == shapes(state)
    }
    return OptimizerState(params={**fresh.params, **kept}, rates=fresh.rates)


def _optimizer(
    name: str, weight_decay: float | jax.Array, arguments: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Build the optimizer of one param, at rate 1."""
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer {name!r}{did_you_mean(name, OPTIMIZERS)}; known: {', '.join(OPTIMIZERS)}")
    function: Callable[..., Any] = getattr(optax, name)
    parameters = inspect.signature(function).parameters
    settable = [parameter for parameter in parameters if parameter not in (*_GIVEN, *_SCALED.get(name, ()))]
    unknown = [f"no argument {given!r}{did_you_mean(given, settable)}" for given in arguments if given not in settable]
    if unknown:
        raise ValueError(f"optimizer {name!r}: {'; '.join(unknown)}; its arguments are {', '.join(settable)}")
    if "weight_decay" in parameters:
        return function(1.0, weight_decay=weight_decay, **arguments)
    return optax.chain(optax.add_decayed_weights(weight_decay), function(1.0, **arguments))
