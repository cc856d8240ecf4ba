"""What decoders get wrong is right here: golden pixels within 1/255, and a reason for each unusable file."""

from __future__ import annotations

import io
import multiprocessing
import os
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diff_diffusion.data import images
from diff_diffusion.data.images import ImageFileError, fit, open_image, peek, read_image

RAMP = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4369  # 0 to 65535, the 8-bit values 0, 17, …, 255
RAMP_8 = (RAMP // 257).astype(np.uint8)


def png(height: int, width: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file with any header: what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_image(path)).astype(int)


def close(seen: np.ndarray, golden: object) -> bool:
    golden = np.asarray(golden).astype(int)
    return seen.shape == golden.shape and bool((abs(seen - golden) <= 1).all())


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / f"a.{kind}")
    assert close(pixels(tmp_path / f"a.{kind}"), RAMP_8)
    assert peek(tmp_path / f"a.{kind}").grey


def test_16_bit_grey_big_endian(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (4, 4), RAMP.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"
    assert close(pixels(tmp_path / "a.tif"), RAMP_8)


def test_16_bit_grey_where_zero_is_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert close(pixels(tmp_path / "a.tif"), 255 - RAMP_8)


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    key = struct.pack(">I", 2) + b"tRNS" + b"\x00\x00" + struct.pack(">I", zlib.crc32(b"tRNS\x00\x00"))
    (tmp_path / "a.png").write_bytes(png(4, 4, 16, 0, RAMP.astype(">u2").tobytes(), key))
    golden = RAMP_8.copy()
    golden[0, 0] = 255
    assert close(pixels(tmp_path / "a.png"), golden)


def test_16_bit_grey_in_mode_i_as_older_pillow_opens_it() -> None:
    image = Image.fromarray(RAMP.astype(np.int32))
    image.format = "PNG"
    assert close(np.asarray(images._eight_bit(image)).astype(int), RAMP_8)


def test_16_bit_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    grey_alpha = np.stack([RAMP, np.full_like(RAMP, 0x8000)], -1)
    (tmp_path / "a.png").write_bytes(png(4, 4, 16, 4, grey_alpha.astype(">u2").tobytes()))
    assert peek(tmp_path / "a.png").grey
    seen = read_image(tmp_path / "a.png", (1, 4, 4))[0].astype(int)
    assert close(seen, np.rint(RAMP_8 * 0.5 + 127.5))


def test_12_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 0xFFF], [0x111, 0x888]])
    packed = b"".join(int((a << 12) | b).to_bytes(3, "big") for a, b in values)
    # width, height, bits, uncompressed, 0 is black, offset of the pixels, rows per strip, bytes of the pixels
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8, 278: 2, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    (tmp_path / "a.tif").write_bytes(head + packed + struct.pack("<H", len(tags)) + directory + bytes(4))
    assert close(pixels(tmp_path / "a.tif"), [[0, 255], [17, 136]])


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = np.full((24, 16), 40, np.uint8)  # higher than wide, its four quarters told apart
    upright[:12, :8], upright[:12, 8:], upright[12:, :8] = 240, 180, 110
    # How the sensor lay, for each value of the tag: the inverse of what a viewer does (EXIF 2.32, table 6).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(path, exif=exif, quality=100, lossless=True)
    assert peek(path)[:2] == (24, 16)
    assert close(pixels(path), np.repeat(upright[..., None], 3, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0\xff\xff\xff\xff",
        b"nonsense",
        struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, 2, 2, b"x", 0),  # an orientation that is text
    ],
)
def test_damaged_exif_leaves_the_picture_as_it_lies(tmp_path: Path, exif: bytes) -> None:
    Image.new("L", (4, 6), 90).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif, quality=100)
    assert close(pixels(tmp_path / "a.jpg"), np.full((6, 4), 90))


def test_palette_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=bytes([255, 128, 0]))
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == "P"
    assert close(pixels(tmp_path / "a.png"), [[[200, 0, 0], [127, 177, 127], [255, 255, 255]]])
    assert not peek(tmp_path / "a.png").grey


def test_palette_without_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png")
    assert close(pixels(tmp_path / "a.png"), [[[40, 50, 60], [10, 20, 30]]])


def test_palette_of_greys_is_grey(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 10, 10, 70, 70, 70])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png")
    assert peek(tmp_path / "a.png").grey
    assert close(read_image(tmp_path / "a.png", (1, 1, 2))[0].astype(int), [[70, 10]])


def test_rgba_is_laid_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)).save(tmp_path / "a.png")
    assert close(pixels(tmp_path / "a.png"), [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]])


def test_la_is_laid_on_white_and_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[100, 255], [100, 0], [0, 128]]], np.uint8), "LA").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").mode == "L"
    assert close(pixels(tmp_path / "a.png"), [[100, 255, 127]])
    assert peek(tmp_path / "a.png").grey


def test_cmyk(tmp_path: Path) -> None:
    flat = {"a.jpg": (0, 255, 255, 0), "b.jpg": (0, 0, 0, 255), "c.tif": (255, 0, 0, 0), "d.tif": (0, 0, 0, 102)}
    golden = {"a.jpg": (255, 0, 0), "b.jpg": (0, 0, 0), "c.tif": (0, 255, 255), "d.tif": (153, 153, 153)}
    for name, ink in flat.items():
        Image.new("CMYK", (8, 8), ink).save(tmp_path / name)
        assert close(pixels(tmp_path / name)[4, 4], golden[name]), name


def test_float_tiff(tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "a.tif")
    assert close(pixels(tmp_path / "a.tif"), RAMP_8)
    assert peek(tmp_path / "a.tif").grey


def test_1_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False, True]])).save(tmp_path / "a.png")
    assert peek(tmp_path / "a.png").mode == "1"
    assert close(pixels(tmp_path / "a.png"), [[255, 0, 255]])


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("gif", "webp", "png"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert close(pixels(tmp_path / f"a.{kind}")[0, 0], [255, 0, 0]), kind


def test_the_jpeg_of_a_phone_that_holds_two_pictures(tmp_path: Path) -> None:
    photo, depth = Image.new("RGB", (16, 8), (200, 100, 50)), Image.new("RGB", (16, 8), "blue")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[depth], quality=100)
    assert close(pixels(tmp_path / "a.jpg")[4, 4], [200, 100, 50])


def test_same_size_passes_bit_identical(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", (3, 9, 7)) == noise.transpose(2, 0, 1)).all()
    assert read_image(tmp_path / "a.png", (3, 9, 7)).flags.c_contiguous


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 333), (64, 64), (20, 30)])
def test_a_circle_stays_a_circle(height: int, width: int) -> None:
    y, x = np.mgrid[:height, :width]
    radius = 0.3 * min(height, width)
    disc = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < radius
    seen = np.asarray(fit(Image.fromarray((disc * 255).astype(np.uint8)), 64, 64)) > 127
    high, wide = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert abs(np.ptp(high) - np.ptp(wide)) <= 1
    assert abs(np.ptp(high) + 1 - 2 * 0.3 * 64) <= 2
    assert abs(high.mean() - 31.5) <= 0.5
    assert abs(wide.mean() - 31.5) <= 0.5


def test_a_large_reduction_is_antialiased() -> None:
    stripes = np.zeros((640, 640), np.uint8)
    stripes[:, ::2] = 255
    assert abs(np.asarray(fit(Image.fromarray(stripes), 16, 16)).astype(int) - 127.5).max() <= 8


def test_a_large_jpeg_is_decoded_small_but_not_seen_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:1600, :2400] / 1600
    smooth = np.stack([255 * y, 127 + 120 * np.sin(9 * x), 200 * x / 1.5], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    decoded: list[tuple[int, int]] = []
    monkeypatch.setattr(images, "fit", lambda image, *size: decoded.append(image.size))
    for size in ((64, 64), (100, 200), (3000, 2000)):
        open_image(tmp_path / "a.jpg", size)
    assert decoded == [(300, 200), (1200, 800), (2400, 1600)]
    monkeypatch.undo()
    seen = read_image(tmp_path / "a.jpg", (3, 64, 64)).transpose(1, 2, 0).astype(int)
    assert abs(seen - np.asarray(fit(Image.fromarray(smooth), 64, 64))).max() <= 3


def _file(tmp_path: Path, kind: str) -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_files_are_errors(tmp_path: Path, kind: str) -> None:
    whole = _file(tmp_path, kind)
    path = tmp_path / "a.png"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageFileError) as caught:
        open_image(path)
    # Half a TIFF has lost its directory, which stands last: there is nothing left to recognise.
    assert caught.value.reason in ({"not an image", "truncated"} if kind == "TIFF" else {"truncated"})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"just some text\n" * 20, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (b"P5 1 1 255\n\x80", "not an image"),  # Pillow would read it, but no decoder runs that was not asked for
    ],
)
def test_reasons(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (peek, open_image):
        with pytest.raises(ImageFileError) as caught:
            read(tmp_path / "a.jpg")
        assert caught.value.reason == reason


def test_a_missing_file_and_a_folder_have_reasons(tmp_path: Path) -> None:
    (tmp_path / "b.png").mkdir()
    for name, reason in (("a.png", "missing file"), ("b.png", "unreadable")):
        with pytest.raises(ImageFileError) as caught:
            open_image(tmp_path / name)
        assert caught.value.reason == reason


def test_a_file_without_permission_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(ImageFileError) as caught:
        open_image(tmp_path / "a.png")
    assert caught.value.reason == "unreadable"
    assert "Permission denied" in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("side", "refused"), [(13_377, False), (13_378, True), (60_000, True)])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path, side: int, refused: bool) -> None:
    path = tmp_path / "a.png"
    # The header alone, nothing of that size is ever allocated, in a file long enough to hold such a picture.
    path.write_bytes(png(side, side, 8, 0, b"") + bytes(20_000))
    if refused:
        for read in (peek, open_image):
            with pytest.raises(ImageFileError) as caught:
                read(path)
            assert caught.value.reason == "too large"
    else:
        assert peek(path).height == side


def test_a_few_bytes_that_claim_a_large_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4000, 4000, 8, 0, b""))
    assert peek(tmp_path / "a.png").height == 4000
    (tmp_path / "a.png").write_bytes(png(4001, 4000, 8, 0, b""))
    with pytest.raises(ImageFileError, match="too large"):
        peek(tmp_path / "a.png")
    Image.new("1", (6000, 6000)).save(tmp_path / "a.png")  # the densest honest file
    assert open_image(tmp_path / "a.png", (8, 8)).size == (8, 8)


def test_bombs_are_refused_where_the_user_switched_pillows_own_limit_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, 8, 0, b"") + bytes(400_000))
    with pytest.raises(ImageFileError, match="too large"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, np.nan]], np.float32), "non-finite values"),
        (np.array([[0.0, np.inf]], np.float32), "non-finite values"),
        (np.array([[0.0, 255.0]], np.float32), "float values outside 0 to 1"),
        (np.array([[-0.5, 1.0]], np.float32), "float values outside 0 to 1"),
        (np.array([[0, 70_000]], np.int32), "unsupported pixel format"),
    ],
)
def test_numbers_that_are_no_colours(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError) as caught:
        open_image(tmp_path / "a.tif")
    assert caught.value.reason == reason


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    eight_bit = images._eight_bit
    inside: list[int] = [0]
    most: list[int] = []

    def slow(image: Image.Image) -> Image.Image:
        inside[0] += 1
        most.append(inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return eight_bit(image)

    def most_at_once() -> int:
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(open_image, [tmp_path / "a.png"] * 8))
        return max(most)

    monkeypatch.setattr(images, "_eight_bit", slow)
    assert most_at_once() > 1
    monkeypatch.setattr(images, "LARGE", 10)
    assert most_at_once() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_forked_during_a_large_decode_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "LARGE", 10)
    with images._large:
        worker = multiprocessing.get_context("fork").Process(target=open_image, args=(tmp_path / "a.png",))
        worker.start()
        worker.join(20)
        ended = worker.exitcode
        worker.kill()
    assert ended == 0
