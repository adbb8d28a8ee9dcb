"""Images in a folder as the samples of a model, step by step as the options say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from cbn.export.data import DataError
from cbn.export.inputs import ModelInput
from cbn.export.recalibration.data.images import ImageOptions
from cbn.export.recalibration.data.sources import open_source

F4 = np.dtype(np.float32)
ANY = ModelInput("image", F4, ("N", 3, "H", "W"))
SMALL = ModelInput("image", F4, ("N", 3, 4, 6))
GREY = ModelInput("image", F4, ("N", 1, "H", "W"))
LAST = ModelInput("image", F4, ("N", 4, 6, 3))
BYTES = ModelInput("image", np.dtype(np.uint8), ("N", 4, 6, 3))

PIXELS = np.random.default_rng(5).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path


def one(folder, declared, **options):
    (feeds,) = open_source(folder, [declared], images=ImageOptions(**options) if options else None)
    return feeds["image"]


def test_floats_from_0_to_1_channels_first(folder):
    image = one(folder, ANY)
    assert image.dtype == F4
    np.testing.assert_allclose(image[0], PIXELS.transpose(2, 0, 1) / 255, rtol=2e-7)


def test_layout_and_type_are_the_models(folder):
    np.testing.assert_array_equal(one(folder, BYTES)[0], PIXELS)
    np.testing.assert_allclose(one(folder, LAST)[0], PIXELS / 255, rtol=2e-7)
    free = ModelInput("image", F4, ("N", None, None, None))
    assert one(folder, free, layout="NHWC").shape == (1, 4, 6, 3)


def test_scale_mean_and_std_in_the_order_of_the_models_channels(folder):
    image = one(folder, ANY, channels="BGR", scale=0.5, mean=[1, 2, 3], std=[4, 5, 6])
    wanted = (PIXELS[..., ::-1] * 0.5 - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(image[0], wanted.transpose(2, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(one(folder, ANY, scale=1, mean=7)[0, 0], PIXELS[..., 0] - 7.0)


def test_a_model_of_one_channel_gets_grey(folder):
    grey = np.asarray(Image.open(folder / "a.png").convert("L"))
    np.testing.assert_allclose(one(folder, GREY)[0, 0], grey / 255, rtol=2e-7)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    form = "tiff" if mode == "CMYK" else "png"
    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode).save(tmp_path / f"a.{form}")
    np.testing.assert_array_equal(one(tmp_path, ANY), np.ones((1, 3, 4, 6)))


@pytest.mark.parametrize("declared", [ANY, GREY])
def test_16_bits_are_not_clipped_to_8(tmp_path, declared):
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(deep).save(tmp_path / "a.png")
    image = one(tmp_path, declared)
    for channel in image[0]:
        np.testing.assert_allclose(channel, deep / 65535, rtol=1e-6)


def test_a_palette_with_transparency_is_read(tmp_path):
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(one(tmp_path, ANY)[0, :, 0, 0], [1, 0, 0])


def test_photographs_are_turned_upright_unless_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(PIXELS, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(one(tmp_path, ANY)[0], turned / 255, rtol=2e-7)
    assert one(tmp_path, ANY, upright=False).shape == (1, 3, 4, 6)


def test_images_are_stretched_to_the_models_size(tmp_path):
    source = Image.fromarray(np.repeat(np.repeat(PIXELS, 5, 0), 3, 1))
    source.save(tmp_path / "a.png")
    wanted = np.asarray(source.resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(one(tmp_path, SMALL)[0], wanted.transpose(2, 0, 1) / 255, rtol=2e-7)
    nearest = one(tmp_path, SMALL, resample="nearest", scale=1)
    np.testing.assert_array_equal(nearest[0], PIXELS.transpose(2, 0, 1))


def gradient(tmp_path, height, width):
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8), (height, width))
    Image.fromarray(ramp).convert("RGB").save(tmp_path / "a.png")


def test_crop_takes_the_centre_of_the_shorter_side(tmp_path):
    gradient(tmp_path, 8, 20)
    image = one(tmp_path, ANY, size=8, resize="crop", shorter=8, scale=1)
    np.testing.assert_array_equal(image[0, 0, 0], np.arange(6, 14))


def test_crop_covers_the_size_by_default(tmp_path):
    gradient(tmp_path, 8, 40)
    image = one(tmp_path, ANY, size=(4, 6), resize="crop", scale=1)
    assert image.shape == (1, 3, 4, 6)
    np.testing.assert_allclose(image[0, 0, 0], 0.5 + np.arange(14, 26, 2), atol=0.5)


def test_shorter_resizes_before_the_crop(tmp_path):
    gradient(tmp_path, 8, 20)
    options = {"size": 8, "resize": "crop", "shorter": 16, "resample": "nearest", "scale": 1}
    np.testing.assert_array_equal(
        one(tmp_path, ANY, **options)[0, 0, 0], np.repeat(np.arange(8, 12), 2)
    )


def test_images_of_their_own_size_share_a_batch_while_they_are_alike(tmp_path):
    for index, width in enumerate([5, 5, 7, 5]):
        Image.new("RGB", (width, 4)).save(tmp_path / f"{index}.png")
    shapes = [feeds["image"].shape for feeds in open_source(tmp_path, [ANY])]
    assert shapes == [(2, 3, 4, 5), (1, 3, 4, 7), (1, 3, 4, 5)]


def test_folders_within_in_order_with_labels(tmp_path):
    for index, name in enumerate(["b/2.png", "a/x/1.png", "b/1.JPG"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (index, 0, 0)).save(path)
    source = open_source(tmp_path, [SMALL], labels="folders", images=ImageOptions(scale=1))
    (feeds,) = source
    np.testing.assert_array_equal(feeds["image"][:, 0, 0, 0], [1, 2, 0])
    np.testing.assert_array_equal(source.labels.values, [0, 1, 1])
    with pytest.raises(DataError, match=r"expected .*the folder holds a, b"):
        open_source(tmp_path, [SMALL], images=ImageOptions(recursive=False))


def test_options_from_a_file(folder):
    path = folder / "images.toml"
    path.write_text('size = [2, 3]\nresize = "crop"\nmean = [0.5, 0.5, 0.5]\nscale = 1\n')
    options = ImageOptions.from_toml(path)
    assert (options.shape, options.resize, options.mean) == ((2, 3), "crop", [0.5, 0.5, 0.5])
    (feeds,) = open_source(folder, [ANY], images=path)
    assert feeds["image"].shape == (1, 3, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise = 4", "images.toml: unknown key 'sise'; accepted: size, resize"),
        ("size = [1, 2, 3]", "images.toml: images: expected size as an int or .height, width."),
        ("size = 0", "expected size as an int"),
        ("resize = 'cut'", "expected resize as one of 'stretch', 'crop', got 'cut'"),
        ("shorter = 9", "shorter is an int >= 1 and for resize 'crop'"),
        ("scale = [1, 2]", "expected scale as a number, got"),
        ("mean = 'x'", "expected mean as a number"),
        ("std = [1, 0, 1]", "std has to be finite and not 0"),
        ("size = ", "images.toml: cannot be read"),
    ],
)
def test_options_that_are_wrong_are_named(tmp_path, text, message):
    path = tmp_path / "images.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        ImageOptions.from_toml(path)


@pytest.mark.parametrize(
    ("declared", "options", "message"),
    [
        (SMALL, {"size": 8}, "the model takes .*which is not .*size"),
        (SMALL, {"channels": "L"}, "which is not channels L"),
        (SMALL, {"mean": [1.0, 2.0]}, "mean has 2 numbers for 3 channels"),
        (ModelInput("x", F4, ("N", 5)), {}, "one input of 4 dimensions, this one takes 'x'"),
        (ModelInput("x", F4, ("N", 3, 8, None)), {}, "give a size"),
        (ModelInput("x", np.dtype(bool), ("N", 3, 8, 8)), {}, "which images are not"),
        (ModelInput("x", np.dtype(np.int8), ("N", 3, 4, 6)), {}, "a.png: .*do not fit int8"),
        (ANY, {"size": 9, "resize": "crop", "shorter": 4}, "a.png: .*smaller than the size 9 x 9"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(folder, declared, options, message):
    with pytest.raises(DataError, match=message):
        one(folder, declared, **options)


def test_a_broken_image_is_named(folder):
    content = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(content[:60])
    with pytest.raises(DataError, match=r"b\.png: cannot be read"):
        one(folder, SMALL)


def test_what_no_option_says_is_said(folder):
    (note,) = open_source(folder, [SMALL]).notes
    assert "RGB, stretched to (4, 6), times 0.00392157" in note
    assert open_source(folder, [SMALL], images=ImageOptions()).notes == ()


def test_options_need_images(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 6), np.float32))
    with pytest.raises(DataError, match=r"options for images, and .*x\.npy holds none"):
        one(tmp_path / "x.npy", SMALL, size=4)
    with pytest.raises(DataError, match="images are options for a folder, got list"):
        open_source([], [SMALL], images=ImageOptions())


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "cbn\[images\]"'):
        one(folder, SMALL)


def test_the_options_are_part_of_the_fingerprint(folder):
    marks = {
        open_source(folder, [ANY], images=ImageOptions(**options)).fingerprint()
        for options in ({}, {"mean": 0.5}, {"size": 8}, {"channels": "BGR"})
    }
    assert len(marks) == 4
