"""Pictures show the pixels they are given."""

import json

import numpy as np
import pytest
from PIL import Image

import lazysi as lz
from lazysi.pictures import MARGIN, image_grid, plot_schedules, save_samples


def test_grid_puts_every_image_in_its_place():
    images = np.linspace(-1, 1, 5).reshape(5, 1, 1, 1) * np.ones((5, 60, 60, 1))
    pixels = np.asarray(image_grid(images, columns=3))
    assert pixels.shape == (2 * 62 + MARGIN, 3 * 62 + MARGIN)
    for index, value in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(index, 3)
        tile = pixels[MARGIN + 62 * row :, MARGIN + 62 * column :][:60, :60]
        assert abs(int(tile.min()) - value) <= 1  # rounding of the byte
        assert tile.min() == tile.max()


def test_small_images_are_enlarged_without_blur_and_colours_are_kept():
    images = np.full((1, 28, 28, 3), -1.0)
    images[0, 0, 0] = [1, -1, 1]
    pixels = np.asarray(image_grid(images, columns=4))
    assert pixels.shape == (56 + 2 * MARGIN, 56 + 2 * MARGIN, 3)
    assert (pixels[MARGIN : MARGIN + 2, MARGIN : MARGIN + 2] == [255, 0, 255]).all()
    assert pixels[MARGIN + 2, MARGIN + 2].max() == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8)), r"expected images .* got an array of shape \(3, 8, 8\)"),
        (np.zeros((1, 8, 8, 2)), r"got an array of shape \(1, 8, 8, 2\)"),
        (np.full((1, 8, 8, 1), np.nan), "expected finite images"),
    ],
)
def test_no_picture_of_what_is_none(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        image_grid(images, 1)
    with pytest.raises(ValueError, match=message):
        save_samples(tmp_path / "x.png", images, columns=1, about={})
    assert list(tmp_path.iterdir()) == []


def test_samples_and_their_settings_can_be_read_back(tmp_path):
    samples, about = np.random.RandomState(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32), {"steps": 8}
    save_samples(tmp_path / "x.npz", samples, columns=2, about=about)
    save_samples(tmp_path / "x.png", samples, columns=2, about=about)
    with np.load(tmp_path / "x.npz") as stored:
        assert (stored["samples"] == samples).all()
        assert json.loads(str(stored["about"])) == about
    with Image.open(tmp_path / "x.png") as picture:
        assert json.loads(picture.info["lazysi"]) == about
        assert (np.asarray(picture) == np.asarray(image_grid(samples, 2))).all()


def test_schedule_picture_has_the_curves(tmp_path):
    plot_schedules(tmp_path / "one.png", {"linear": lz.linear()})
    plot_schedules(tmp_path / "two.png", {"linear": lz.linear(), "point mass": lz.point_mass()})
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.size == two.size
        assert (np.asarray(one) != np.asarray(two)).any()
