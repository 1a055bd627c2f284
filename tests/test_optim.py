"""The ramps against linspace, the paper's update by hand, freezing, and readable schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmarks import optim


def test_ramps_match_linspace_per_epoch():
    rate, momentum = np.linspace(0.03, 0.00001, 5000), np.linspace(0.9, 0.9999, 5000)
    steps_per_epoch = 9
    schedules = [
        optim.per_epoch(start, stop, epochs=5000, steps_per_epoch=steps_per_epoch)
        for start, stop in ((0.03, 0.00001), (0.9, 0.9999))
    ]
    for epoch in (1, 2500, 5000):
        for step in (0, steps_per_epoch - 1):  # constant within an epoch
            count = (epoch - 1) * steps_per_epoch + step
            np.testing.assert_allclose(schedules[0](count), rate[epoch - 1], rtol=1e-6)
            np.testing.assert_allclose(schedules[1](count), momentum[epoch - 1], rtol=1e-6)
    np.testing.assert_allclose(schedules[0](5000 * steps_per_epoch + 7), 0.00001, rtol=1e-6)


def test_nesterov_by_hand():
    # By hand, p = 1, gradient 2 throughout, rates .1 then .2, momenta .5 then .6:
    # v = -.2, p = 1 + .5 * -.2 - .2 = .7; v = .6 * -.2 - .4 = -.52, p = .7 + .6 * -.52 - .4 = -.012
    tx = optim.ramps((0.1, 0.2), (0.5, 0.6), epochs=2)
    params, grads = {"w": jnp.ones(())}, {"w": jnp.full((), 2.0)}
    state = tx.init(params)
    for expected in (0.7, -0.012):
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5)
    read = optim.hyperparameters(state)
    np.testing.assert_allclose([read["learning_rate"], read["momentum"]], [0.2, 0.6], rtol=1e-6)


def test_nesterov_differs_from_optax_where_the_rate_changes():
    ours, theirs = optim.ramps((0.1, 0.01), (0.9, 0.9), epochs=3), optax.sgd(
        optim.per_epoch(0.1, 0.01, epochs=3, steps_per_epoch=1), 0.9, nesterov=True
    )  # fmt: skip
    found = []
    for tx in (ours, theirs):
        params, state = jnp.ones(()), tx.init(jnp.ones(()))
        for _ in range(3):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        found.append(float(params))
    assert abs(found[0] - found[1]) > 1e-2


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_rate_warms_up_then_decays(name):
    spec = {"name": name, "learning_rate": 1e-3, "warmup": 0.2, "weight_decay": 0.01 * (name == "adamw"), "clip": 1.0}
    tx = optim.build(spec, epochs=5, steps_per_epoch=4)
    params = {"w": jnp.ones(3)}
    state, rates = tx.init(params), []
    for _ in range(20):
        _, state = tx.update({"w": jnp.ones(3)}, state, params)
        rates.append(float(optim.hyperparameters(state)["learning_rate"]))
    assert np.argmax(rates) == 4 and rates[4] == pytest.approx(1e-3) and rates[-1] < 1e-4
    assert float(optim.hyperparameters(state)["momentum"]) == pytest.approx(0.9)


def test_one_cycle_and_constant_schedules_by_hand():
    def rates(**spec):
        tx = optim.build({"name": "adam", "learning_rate": 1e-2} | spec, epochs=10, steps_per_epoch=2)
        state, found = tx.init(jnp.ones(1)), []
        for _ in range(21):
            _, state = tx.update(jnp.ones(1), state, jnp.ones(1))
            found.append(float(optim.hyperparameters(state)["learning_rate"]))
        return found

    np.testing.assert_allclose(rates(schedule="constant"), 1e-2, rtol=1e-6)
    cycle = rates()
    # From 1/25 of the peak, which is reached after a tenth of the 20 updates, to 1/1000.
    assert np.argmax(cycle) == 2
    np.testing.assert_allclose([cycle[0], cycle[2], cycle[20]], [4e-4, 1e-2, 1e-5], rtol=1e-3)


def test_the_gradient_is_clipped_and_not_the_update():
    spec = {"name": "nesterov", "learning_rate": 0.1, "momentum": 0.0, "clip": 1.0}
    tx = optim.build(spec, epochs=1, steps_per_epoch=1)
    params, gradient = jnp.zeros(2), jnp.float32([30, 40])
    # (30, 40) has norm 50 and is clipped to (0.6, 0.8); the rate is a tenth.
    np.testing.assert_allclose(tx.update(gradient, tx.init(params), params)[0], [-0.06, -0.08], rtol=1e-5)


def test_adamw_decays_parameters_without_a_gradient():
    spec = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.5, "schedule": "constant"}
    tx = optim.build(spec, epochs=5, steps_per_epoch=1)
    params = jnp.float32([3.0])
    update, _ = tx.update(jnp.zeros(1), tx.init(params), params)
    np.testing.assert_allclose(update, [-0.1 * 0.5 * 3], rtol=1e-5)


def test_frozen_parameters_do_not_move():
    params = {"body": {"a": jnp.ones(2)}, "head": {"b": jnp.ones(2)}}
    tx = optim.freeze(optim.ramps(epochs=2), params, "body/")
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["body"]["a"], 1)
    assert (moved["head"]["b"] < 1).all()
    np.testing.assert_allclose(optim.hyperparameters(state)["learning_rate"], 0.03, rtol=1e-6)


def test_an_unknown_optimiser_lists_the_choices():
    with pytest.raises(ValueError, match="nesterov, rmsprop, adam, adamw"):
        optim.build({"name": "sdg"}, epochs=1, steps_per_epoch=1)


def test_plateau_lowers_the_rate_by_its_rule_under_jit():
    tx = optim.build(
        {"name": "rmsprop", "learning_rate": 0.1, "plateau": 2, "plateau_factor": 0.2}, epochs=9, steps_per_epoch=1
    )
    params = {"w": jnp.ones(3)}
    state, rates = tx.init(params), []
    update = jax.jit(tx.update)
    for loss in (5.0, 4.0, 4.5, 4.2, 3.0, 3.0, 3.0, 3.0, 3.0):
        state = optim.observe(state, loss)
        _, state = update({"w": jnp.ones(3)}, state, params)
        rates.append(float(optim.hyperparameters(state)["learning_rate"]))
    # Reduced after two epochs without a new lowest loss: after 4.5 and 4.2, which is lower than the last loss but not
    # than the lowest; then after two and after four more epochs at 3.0.
    expected = 0.1 * np.array([1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008])
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_plateau_scales_the_update_itself():
    def moved(scale):
        tx = optim.build({"name": "rmsprop", "learning_rate": 0.1, "plateau": 1}, epochs=1, steps_per_epoch=1)
        state = tx.init(jnp.ones(()))
        for loss in [1.0] * scale:
            state = optim.observe(state, loss)
        return float(tx.update(jnp.ones(()), state, jnp.ones(()))[0])

    np.testing.assert_allclose(moved(2) / moved(1), 0.2, rtol=1e-6)  # the default factor
    plain = optim.build({"name": "adam", "learning_rate": 0.1, "warmup": 0.0}, epochs=1, steps_per_epoch=1)
    state = plain.init(jnp.ones(()))
    jax.tree.map(np.testing.assert_array_equal, optim.observe(state, 1.0), state)


def test_rmsprop_matches_its_formula():
    tx = optim.build({"name": "rmsprop", "learning_rate": 0.01}, epochs=1, steps_per_epoch=1)
    params, mean = jnp.ones(()), 0.0
    state = tx.init(params)
    for g in (2.0, -1.0, 0.5):
        update, state = tx.update(jnp.float32(g), state, params)
        mean = 0.9 * mean + 0.1 * g * g
        np.testing.assert_allclose(float(update), -0.01 * g / (np.sqrt(mean) + 1e-7), rtol=1e-5)


def test_rates_scale_updates_by_the_first_matching_pattern():
    params = {"body": {"encoder": jnp.ones(2), "neck": jnp.ones(2)}, "head": {"b": jnp.ones(2)}}
    spec = {"name": "adam", "learning_rate": 0.1, "warmup": 0.0}
    plain = optim.build(spec, epochs=3, steps_per_epoch=1)
    scaled = optim.build(spec | {"rates": [["body/enc", 0.1], ["body", 0.5]]}, epochs=3, steps_per_epoch=1)
    one, other = plain.init(params), scaled.init(params)
    for step in range(3):
        grads = jax.tree.map(lambda p, step=step: p * (step - 0.5), params)
        expected, one = plain.update(grads, one, params)
        found, other = jax.jit(scaled.update)(grads, other, params)
        np.testing.assert_allclose(found["body"]["encoder"], 0.1 * expected["body"]["encoder"], rtol=1e-5)
        np.testing.assert_allclose(found["body"]["neck"], 0.5 * expected["body"]["neck"], rtol=1e-5)
        np.testing.assert_allclose(found["head"]["b"], expected["head"]["b"], rtol=1e-5)
    with pytest.raises(ValueError, match=r"'encoder' matches no parameter; the parameters are body/encoder, body/neck"):
        optim.rates([("encoder", 0.1)]).init(params)
    frozen = optim.freeze(scaled, params, "body/encoder")  # patterns of `rates` may match frozen parameters
    found, _ = frozen.update(jax.tree.map(jnp.ones_like, params), frozen.init(params), params)
    assert not found["body"]["encoder"].any() and found["body"]["neck"].all()


def test_the_average_follows_its_formula_and_other_optimisers_have_none():
    tx = optax.chain(optax.sgd(0.5), optim.average(0.4))
    params = expected = jnp.float32([1.0, 2.0])
    state = tx.init(params)
    np.testing.assert_array_equal(optim.averaged(state, None), params)
    for t in range(1, 6):
        updates, state = jax.jit(tx.update)(jnp.float32([1.0, -t]), state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.4, (1 + t) / (10 + t))  # 2/11, 3/12, 4/13, 5/14, .4
        expected = decay * expected + (1 - decay) * np.asarray(params)
        np.testing.assert_allclose(optim.averaged(state, None), expected, rtol=1e-6)
    assert optim.averaged(optax.adam(0.1).init(params), params) is params


def test_schedules_count_accumulated_updates_not_batches():
    # Six epochs of three batches, two batches per update: of the nine updates, 0 and 1 begin in the first epoch, 2 in
    # the second, ...
    schedule = optim.per_epoch(0, 5, epochs=6, steps_per_epoch=3, accumulate=2)
    np.testing.assert_allclose([schedule(jnp.int32(n)) for n in range(10)], [0, 0, 1, 2, 2, 3, 4, 4, 5, 5])
    spec = {"name": "adam", "learning_rate": 1e-3, "warmup": 0.2}
    tx = optax.MultiSteps(optim.build(spec, epochs=5, steps_per_epoch=4, accumulate=2), 2).gradient_transformation()
    params = {"w": jnp.ones(3)}
    state, rates = tx.init(params), []
    for _ in range(20):
        _, state = tx.update({"w": jnp.ones(3)}, state, params)
        rates.append(float(optim.hyperparameters(state)["learning_rate"]))
    assert rates[1::2][:-1] == rates[2::2]  # unchanged between updates
    assert np.argmax(rates) == 5 and max(rates) == pytest.approx(1e-3) and rates[-1] < 1e-4


def test_a_number_is_a_constant_ramp_and_the_momentum_has_a_default():
    one = optim.build({"name": "nesterov", "learning_rate": 0.01}, epochs=2, steps_per_epoch=3)
    pair = {"name": "nesterov", "learning_rate": (0.01, 0.01), "momentum": (0.9, 0.9)}
    two = optim.build(pair, epochs=2, steps_per_epoch=3)
    params = jnp.ones(2)
    found = [tx.update(params, tx.init(params), params)[0] for tx in (one, two)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            {"name": "adam", "learning_rate": 1e-3, "momentun": 0.5},
            "optimizer.momentun=0.5: no such key; the keys are name, learning_rate",
        ),
        ({"name": "adam", "learning_rate": 1e-3, "momentum": 0.5}, "momentum=0.5: a momentum is for nesterov, not"),
        ({"name": "adam", "learning_rate": 1e-3, "weight_decay": 5e-4}, "weight_decay=0.0005: adam has no .*adamw"),
        ({"name": "adam", "learning_rate": (0.01, 0.001)}, "adam takes one number"),
    ],
)
def test_unsupported_optimiser_options_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        optim.build(spec, epochs=2, steps_per_epoch=3)


def test_a_pattern_that_freezes_nothing_is_refused():
    with pytest.raises(ValueError, match="freeze='a' matches no parameter; the parameters are body/a, head/b"):
        optim.freeze(optax.sgd(1.0), {"body": {"a": 1.0}, "head": {"b": 1.0}}, "a")


def test_omitted_options_have_defaults():
    params = {"w": jnp.ones(2)}
    for spec in ({"name": "adamw", "learning_rate": 1e-3}, {"name": "adam", "learning_rate": 1e-3, "plateau": 2}):
        tx = optim.build(spec, epochs=2, steps_per_epoch=1)
        updates, _ = tx.update(params, tx.init(params), params)
        assert np.isfinite(updates["w"]).all()


def test_a_warmup_over_all_steps_ends_at_the_peak():
    for epochs in (1, 2):
        tx = optim.build({"name": "adam", "learning_rate": 0.1, "warmup": 1.0}, epochs=epochs, steps_per_epoch=1)
        state, rates = tx.init(jnp.ones(1)), []
        for _ in range(epochs + 1):
            _, state = tx.update(jnp.ones(1), state, jnp.ones(1))
            rates.append(float(optim.hyperparameters(state)["learning_rate"]))
        np.testing.assert_allclose(rates, np.linspace(0.004, 0.1, epochs + 1), rtol=1e-5)
