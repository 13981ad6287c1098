"""Pictures: what is kept byte for byte, how the rest becomes 8 bits, and what is refused with which reason."""

import hashlib
import io
import os
import tarfile
import zlib

import imagehash
import numpy as np
import pytest
from PIL import Image

from vlm.corpus import image_files
from vlm.corpus.fingerprints import hamming, hash_from_hex
from vlm.corpus.image_files import open_source_bytes
from vlm.corpus.images import BadImage, EncodedImage, ImageFile, encode_image, inspect_image


def gray_pixels(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """Large blobs with smaller ones on them: a hash compares coefficients, and each needs something to stand on."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (side, side)).astype(np.uint8)) for side in (6, 24)]
    large, small = (np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), float) for layer in layers)
    return np.rint(0.7 * large + 0.3 * small).astype(np.uint8)


def color(height: int = 60, width: int = 80) -> Image.Image:
    return Image.fromarray(np.stack([gray_pixels(height, width, seed) for seed in range(3)], axis=-1))


def saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels_of(encoded: EncodedImage) -> np.ndarray:
    image = Image.open(io.BytesIO(encoded.data))
    assert (image.size, image.format) == ((encoded.width, encoded.height), {"jpg": "JPEG", "png": "PNG"}[encoded.form])
    return np.asarray(image)


GRAY = Image.fromarray(gray_pixels())
KEPT = {
    "gray JPEG": (saved(GRAY, "JPEG"), "jpg"),
    "color JPEG": (saved(color(), "JPEG", quality=70), "jpg"),
    "progressive JPEG": (saved(color(), "JPEG", progressive=True), "jpg"),
    "gray PNG": (saved(GRAY, "PNG"), "png"),
    "color PNG": (saved(color(), "PNG"), "png"),
}
REENCODED = {
    "palette PNG": (saved(color().quantize(64), "PNG"), "png", "RGB"),
    "alpha PNG": (saved(color().convert("RGBA"), "PNG"), "png", "RGB"),
    "gray alpha PNG": (saved(GRAY.convert("LA"), "PNG"), "png", "L"),
    "1 bit PNG": (saved(GRAY.convert("1"), "PNG"), "png", "L"),
    "4 bit PNG of grays": (saved(GRAY.quantize(16), "PNG", bits=4), "png", "L"),
    "CMYK JPEG": (saved(color().convert("CMYK"), "JPEG"), "jpg", "RGB"),
    "BMP": (saved(color(), "BMP"), "png", "RGB"),
    "GIF": (saved(GRAY, "GIF"), "png", "L"),
    "TIFF": (saved(color(), "TIFF"), "png", "RGB"),
    "TIFF of a JPEG": (saved(color(), "TIFF", compression="jpeg"), "jpg", "RGB"),
    "lossy WebP": (saved(color(), "WEBP", quality=80), "jpg", "RGB"),
    "lossless WebP": (saved(color(), "WEBP", lossless=True), "png", "RGB"),
    "turned JPEG": (saved(color(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
                    "jpg", "RGB"),
}


@pytest.mark.parametrize("name", KEPT)
def test_gray_and_rgb_of_8_bits_are_kept_byte_for_byte(name, tmp_path):
    data, form = KEPT[name]
    (tmp_path / "image.anything").write_bytes(data)  # the name says nothing
    found = inspect_image(ImageFile(tmp_path, "image.anything"), None, None)
    encoded = encode_image(tmp_path / "image.anything", None, None, None)
    assert encoded == EncodedImage(data, form, 80, 60, False)
    assert (found.form, found.width, found.height, found.reencoded) == (form, 80, 60, False)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    expected = imagehash.phash(Image.open(io.BytesIO(data)), hash_size=16)
    assert hamming(found.phash, hash_from_hex(str(expected))) <= 4  # gray is the JPEG's own brightness
    flipped = saved(Image.open(io.BytesIO(data)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG")
    assert hamming(found.mirrored, inspect_image(flipped).phash) <= 6


@pytest.mark.parametrize("name", REENCODED)
def test_everything_else_is_encoded_again_and_always_to_the_same_bytes(name):
    data, form, mode = REENCODED[name]
    found, encoded = inspect_image(data), encode_image(data)
    assert encoded.reencoded and found.reencoded and encoded == encode_image(data)
    assert (found.form, found.width, found.height) == (encoded.form, encoded.width, encoded.height) == (
        form, encoded.width, encoded.height)
    stored = Image.open(io.BytesIO(encoded.data))
    assert stored.mode == mode and not {"exif", "icc_profile", "transparency", "comment"} & stored.info.keys()
    again = inspect_image(encoded.data)
    assert not again.reencoded and hamming(found.phash, again.phash) <= 6


def test_colors_survive_what_is_lossless():
    for name in ("alpha PNG", "BMP", "TIFF", "lossless WebP"):
        assert np.array_equal(pixels_of(encode_image(REENCODED[name][0])), np.asarray(color())), name


def test_cmyk_has_the_colors_that_a_viewer_shows():
    shown = pixels_of(encode_image(REENCODED["CMYK JPEG"][0])).astype(int)
    assert np.abs(shown - np.asarray(color())).mean() < 8


def test_what_is_transparent_becomes_white():
    layers = np.dstack([np.asarray(color()), np.full((60, 80), 255, np.uint8)])
    layers[:30, :, :3], layers[:30, :, 3] = 7, 0  # hidden pixels may have any color
    shown = pixels_of(encode_image(saved(Image.fromarray(layers), "PNG")))
    assert (shown[:30] == 255).all() and np.array_equal(shown[30:], layers[30:, :, :3])


def test_exif_orientation_is_applied():
    upright = np.asarray(Image.open(io.BytesIO(saved(color(), "JPEG"))))
    encoded = encode_image(REENCODED["turned JPEG"][0])  # orientation 6: to be turned clockwise
    assert (encoded.width, encoded.height) == (60, 80)
    assert np.abs(pixels_of(encoded).astype(int) - np.rot90(upright, -1)).mean() < 3


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(gray_pixels(seed=seed)) for seed in (3, 4)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(encode_image(data)), np.asarray(frames[0]))


def test_pages_of_a_tiff_have_their_own_hash():
    frames = [Image.fromarray(gray_pixels(seed=seed)) for seed in range(3)]
    data = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert len({inspect_image(data, page).sha256 for page in range(3)}) == 3
    assert np.array_equal(pixels_of(encode_image(data, 2)), np.asarray(frames[2]))
    with pytest.raises(BadImage, match="has 3 slices; slice 3 was asked for"):
        inspect_image(data, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_gradient_of_16_bits_keeps_its_gradient(form):
    row = np.linspace(1000, 1000 + 3000, 256).astype(np.uint16)  # 12 bits: Pillow's convert("L") makes all of it white
    pixels = pixels_of(encode_image(saved(Image.fromarray(np.tile(row, (32, 1))), form)))
    assert pixels.dtype == np.uint8 and (np.diff(pixels[0].astype(int)) >= 0).all()
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) > 240


def test_a_metal_marker_does_not_take_the_grays_of_the_anatomy():
    deep = (gray_pixels(200, 200).astype(np.uint16) + 500)
    deep[:5, :5] = 65535
    pixels = pixels_of(encode_image(saved(Image.fromarray(deep), "PNG")))
    assert pixels[10:, 10:].std() > 30 and (pixels[:5, :5] == 255).all()


def test_signed_pixels_are_shown_in_the_window_of_the_card():
    hounsfield = np.tile(np.linspace(-1000, 1000, 200).astype(np.int32), (20, 1))
    data = saved(Image.fromarray(hounsfield), "TIFF")
    shown = pixels_of(encode_image(data, None, (40.0, 400.0)))
    assert (shown[hounsfield < -165] == 0).all() and (shown[hounsfield > 245] == 255).all()
    assert 120 < shown[np.abs(hounsfield - 40) < 8].mean() < 135


@pytest.mark.parametrize("name", [*KEPT, *REENCODED])
def test_resizing_keeps_the_aspect_and_never_enlarges(name):
    data = (KEPT | REENCODED)[name][0]
    full, small = encode_image(data), encode_image(data, long_side=40)
    assert max(small.width, small.height) == 40 and min(small.width, small.height) == 30
    assert small.reencoded and small.form == full.form and small == encode_image(data, long_side=40)
    assert encode_image(data, long_side=4000) == full
    enlarged = Image.open(io.BytesIO(small.data)).convert("L").resize((full.width, full.height))
    wanted = np.asarray(Image.open(io.BytesIO(full.data)).convert("L"), float)
    if name != "1 bit PNG":
        assert np.abs(np.asarray(enlarged, float) - wanted).mean() < 6


def test_resizing_averages_and_does_not_skip_pixels():
    checkerboard = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    for form in ("PNG", "JPEG"):
        pixels = pixels_of(encode_image(saved(Image.fromarray(checkerboard), form, quality=95), long_side=80))
        assert np.abs(pixels[4:-4, 4:-4].astype(int) - 127).max() <= 4


def test_large_jpegs_are_decoded_small_and_hash_as_in_full():
    data = saved(color(1500, 2000), "JPEG", quality=90)
    found = inspect_image(data)
    assert (found.width, found.height) == (2000, 1500)
    assert hamming(found.phash, inspect_image(saved(Image.open(io.BytesIO(data)), "PNG")).phash) <= 4


@pytest.mark.parametrize("name", [*KEPT, *(name for name in REENCODED if name not in ("1 bit PNG", "turned JPEG"))])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_file_that_is_cut_short_is_refused(name, share):
    data = (KEPT | REENCODED)[name][0]
    with pytest.raises(BadImage, match="damaged or cut short|no image that can be read"):
        inspect_image(data[: int(len(data) * share)])


def test_a_large_jpeg_that_is_cut_short_is_refused_although_it_is_decoded_small():
    data = saved(color(1500, 2000), "JPEG", quality=90)
    for share in (0.5, 0.9, 0.995):
        with pytest.raises(BadImage, match="cut short"):
            inspect_image(data[: int(len(data) * share)])


def test_several_pictures_in_one_jpeg_file_are_kept_for_the_first():
    data = saved(GRAY, "MPO", save_all=True, append_images=[Image.fromarray(gray_pixels(seed=9))])
    assert encode_image(data) == EncodedImage(data, "jpg", 80, 60, False)
    assert hamming(inspect_image(data).phash, inspect_image(KEPT["gray PNG"][0]).phash) <= 6


def test_a_png_with_a_changed_byte_is_refused():
    data = bytearray(KEPT["gray PNG"][0])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImage, match="damaged"):
        inspect_image(bytes(data))


@pytest.mark.parametrize(("size", "said"), [((1, 1), "1 × 1 pixels; at least 16"), ((500, 15), "500 × 15 pixels")])
def test_a_tiny_image_is_refused(size, said):
    for form in ("PNG", "JPEG", "TIFF"):
        for read in (inspect_image, encode_image):
            with pytest.raises(BadImage, match=said):
                read(saved(Image.new("L", size), form))


def test_a_blank_image_is_refused():
    with pytest.raises(BadImage, match="blank: every pixel is 255, 255, 255"):
        inspect_image(saved(Image.new("RGB", (900, 900), "white"), "JPEG"))
    with pytest.raises(BadImage, match="blank: every pixel is 0$"):
        inspect_image(saved(Image.fromarray(np.full((40, 40), 3000, np.uint16)), "PNG"))


def test_one_dot_or_one_hue_is_enough_not_to_be_blank():
    dot = np.zeros((2048, 2048), np.uint8)
    dot[1000:1008, 1000:1008] = 8
    assert inspect_image(saved(Image.fromarray(dot), "PNG")).width == 2048
    hues = np.zeros((40, 40, 3), np.uint8)
    hues[:20] = 76, 0, 0  # as bright as (0, 0, 200)
    hues[20:] = 0, 0, 200
    assert np.ptp(np.asarray(Image.fromarray(hues).convert("L"))) == 0
    assert inspect_image(saved(Image.fromarray(hues), "PNG")).width == 40


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (12_000, 9_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    with pytest.raises(BadImage, match="100 million"):
        inspect_image(png_of_size(*size))


@pytest.mark.parametrize(("data", "said"), [
    (b"", "empty"), (b"<!DOCTYPE html><html>", "HTML"), (b"version https://git-lfs.github.com", "git lfs pull"),
    (b"\x1f\x8b\x08not gzip", "gzip"), (b"PK\3\4....", "ZIP"), (b"hello", "JPEG, PNG"), (bytes(5000), "JPEG, PNG"),
])
def test_what_is_no_image_is_refused(data, said):
    for read in (inspect_image, encode_image):
        with pytest.raises(BadImage, match=said) as caught:
            read(data)
        assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in {
        "none.png": "does not exist", "folder.png": "is a folder", "pipe.png": "no regular file",
        "empty.png": "is empty", "empty.png/x.png": "does not exist", "": "names no image", "a\0b": "names no image",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(BadImage, match=said):
            inspect_image(ImageFile(tmp_path, name))
    with pytest.raises(BadImage, match="does not exist"):
        inspect_image(tmp_path / "none.png")


def test_no_path_leaves_the_root(tmp_path):
    data = KEPT["gray PNG"][0]
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(data)
    (root / "inside" / "a.png").write_bytes(data)
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "near.png").symlink_to(root / "inside" / "a.png")
    for image in ("../secret.png", "inside/../../secret.png", str(tmp_path / "secret.png"), "out.png", "up/secret.png"):
        with pytest.raises(BadImage, match="leaves the source's image folder"):
            open_source_bytes(root, image)
    (tmp_path / "link").symlink_to(root)  # the root itself may be a link
    for image in ("near.png", "inside/a.png", "./inside//a.png"):
        assert open_source_bytes(tmp_path / "link", image) == data


def test_members_of_a_tar(tmp_path):
    images = {f"{number:06d}.jpg": saved(Image.fromarray(gray_pixels(seed=number)), "JPEG") for number in range(5)}
    shard = tmp_path / "dataset-000001.tar"

    def write(members: dict[str, bytes]) -> None:
        with tarfile.open(shard, "w") as tar:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))

    write(images | {"empty.jpg": b""})
    for name, data in images.items():
        member = ImageFile(tmp_path, f"dataset-000001.tar!{name}")
        assert inspect_image(member).sha256 == hashlib.sha256(data).hexdigest()
        assert encode_image(member).data == data == open_source_bytes(tmp_path, member.image)
    for member, said in {"9.jpg": "has no member 9.jpg", "empty.jpg": "empty"}.items():
        with pytest.raises(BadImage, match=said):
            inspect_image(ImageFile(tmp_path, f"dataset-000001.tar!{member}"))
    write(dict(reversed(images.items())))  # a tar that changed is listed again
    assert open_source_bytes(tmp_path, "dataset-000001.tar!000001.jpg") == images["000001.jpg"]
    (tmp_path / "torn.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(BadImage, match="torn.tar is not a whole"):
        open_source_bytes(tmp_path, "torn.tar!a.jpg")
    with pytest.raises(BadImage, match="none.tar does not exist"):
        open_source_bytes(tmp_path, "none.tar!a.jpg")
    with pytest.raises(BadImage, match="leaves"):
        open_source_bytes(tmp_path, "../x.tar!a.jpg")


def test_a_tar_that_is_cut_short_still_gives_its_whole_members_no_broken_ones(tmp_path):
    data = KEPT["color JPEG"][0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "2.jpg"):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    whole = (tmp_path / "a.tar").read_bytes()
    second = whole.rindex(data)
    (tmp_path / "a.tar").write_bytes(whole[: second + len(data) // 2])
    with pytest.raises(BadImage):
        inspect_image(ImageFile(tmp_path, "a.tar!2.jpg"))


def test_pillow_is_left_as_it_was():
    limit = Image.MAX_IMAGE_PIXELS
    inspect_image(KEPT["gray PNG"][0])
    assert limit == Image.MAX_IMAGE_PIXELS and image_files.MAX_PIXELS == 100_000_000
