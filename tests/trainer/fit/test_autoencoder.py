"""The autoencoder's shapes, its training settings and the watches of a training."""

import importlib.util

import numpy as np
import pytest

from trainer.config import Activation, ClassifierSettings, Network, Optimiser, Training

keras = pytest.importorskip("keras")

from typing import get_args  # noqa: E402

from trainer.fit import autoencoder, classifier  # noqa: E402

QUICK = Training(epochs=3, batch=64, patience=3, min_delta=0.0)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(4)
    return (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 10))).astype(np.float32)


def test_networks_have_as_many_parameters_as_the_study_says():
    assert autoencoder.build(115).count_params() == 33_900
    assert classifier.build(115, 3).count_params() == 1_027
    assert classifier.build(115, 5).count_params() == 1_045


def test_the_seven_layers_of_the_script_are_rounded_down():
    script = Network((0.75, 0.5, 0.33, 0.25, 0.33, 0.5, 0.75), rounding="floor")
    assert autoencoder.hidden(10, script) == (7, 5, 3, 2, 3, 5, 7)
    assert [layer.units for layer in autoencoder.build(10, script).layers] == [7, 5, 3, 2, 3, 5, 7, 10]


def test_no_layer_is_rounded_down_to_nothing():
    assert autoencoder.hidden(2, Network((0.25,), rounding="floor")) == (1,)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_is_one_that_keras_has(activation):
    assert autoencoder.build(10, Network((0.5,), activation=activation)).output_shape == (None, 10)


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
def test_every_optimiser_lowers_the_loss(optimiser, rows):
    settings = Training(epochs=4, batch=32, learning_rate=0.01, optimiser=optimiser)
    _, history = autoencoder.train(rows, rows[:50], settings, 1, Network((0.5,)))
    assert history["loss"][-1] < history["loss"][0]


def test_the_clipped_head_stays_between_0_and_1_and_cannot_rebuild_other_values(rows):
    linear, of_linear = autoencoder.train(rows, rows, QUICK, 1)
    clipped, of_clipped = autoencoder.train(rows, rows, QUICK, 1, Network(head="clipped"))
    out = autoencoder.predictor(clipped)(10 * rows)
    assert out.min() >= 0.0
    assert out.max() <= 1.0
    assert min(of_clipped["validation_loss"]) > min(of_linear["validation_loss"])
    assert autoencoder.predictor(linear)(10 * rows).min() < 0.0


def test_a_classifier_with_the_clipped_head_learns_classes_apart():
    rng = np.random.default_rng(3)
    numbers = np.arange(400) % 2
    inputs = (rng.normal(size=(400, 4)) + 4 * numbers[:, None]).astype(np.float32)
    settings = ClassifierSettings(hidden=(16,), head="clipped")
    network, _ = classifier.train(
        (inputs, numbers), (inputs, numbers), 2, Training(epochs=20, batch=32, learning_rate=0.01), 1, settings
    )
    assert [layer.units for layer in network.layers if hasattr(layer, "units")] == [16, 2]
    assert (autoencoder.predictor(network)(inputs).argmax(axis=1) == numbers).mean() > 0.95


def test_a_watch_sees_the_same_epochs_as_the_history(rows):
    seen = []
    _, history = autoencoder.train(rows, rows, QUICK, 1, watch=lambda *epoch: seen.append(epoch))
    assert [(number, loss, check) for _, number, loss, check in seen] == list(
        zip(range(1, 4), history["loss"], history["validation_loss"], strict=True)
    )


def test_a_checkpoint_is_the_network_of_the_lowest_validation_loss(rows, tmp_path):
    model, _ = autoencoder.train(rows, rows, QUICK, 1, watch=autoencoder.checkpoints(tmp_path / "kept"))
    kept = keras.models.load_model(tmp_path / "kept" / "autoencoder.keras")
    for ours, theirs in zip(model.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["autoencoder.keras"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_missing_tensorboard_is_named(tmp_path):
    with pytest.raises(autoencoder.TrainingError, match="package tensorboard is not installed"):
        autoencoder.tensorboard(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_a_folder_for_each_network(rows, tmp_path):
    autoencoder.train(rows, rows, QUICK, 1, watch=autoencoder.tensorboard(tmp_path))
    assert list((tmp_path / "autoencoder").glob("events.out.tfevents.*"))
