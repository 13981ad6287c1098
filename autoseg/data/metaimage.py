"""NRRD, MetaImage and GIPL through SimpleITK, whose world axes are LPS (x to the left, y to posterior).

SimpleITK writes labels in more formats, which are not offered: VTK (.vtk), MRC (.mrc, .rec), Stimulate, Bio-Rad and
LSM store no direction; MINC (.mnc) ends the process on some input and NIfTI as text (.nia) reads a file that is
cut short as zeros; HDF5 (.h5) is ITK's own layout, which other programs do not write. NIfTI pairs (.hdr, .img)
are read by `autoseg.data.nifti`, since SimpleITK reads voxels that are cut short without an error.
"""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Integer, Shaped

from autoseg.data.content import Content, check_file, unreadable
from autoseg.errors import UserError
from autoseg.geometry import Direction, Grid

# The reader is chosen by the file's ending, so that a file with another format's content is refused.
IMAGE_IO: dict[str, str] = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".gipl": "GiplImageIO",
    ".gipl.gz": "GiplImageIO",
}
_NAMES = {"NrrdImageIO": "NRRD", "MetaImageIO": "MetaImage", "GiplImageIO": "GIPL", "PNGImageIO": "PNG"}
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class ItkHeader:
    """Spacing, origin and direction as SimpleITK gave them, file axes (x, y[, z]), LPS."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def read_itk(path: Path, image_io: str) -> Content:
    """The voxels and the grid of a file; vector voxels and a fourth axis become channels.

    Raises
    ------
    UserError : not of this format, damaged, complex voxels, more than four axes.
    """
    check_file(path)
    simple_itk = _simple_itk()
    reader = simple_itk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, _NAMES[image_io], _last_sentence(error)) from None
    voxels = simple_itk.GetArrayFromImage(image)
    vector = image.GetNumberOfComponentsPerPixel() > 1
    axes = image.GetDimension()
    if voxels.dtype.kind not in "iuf" or axes > 4 or (vector and axes > 3):
        raise UserError(f"{path} holds {image.GetPixelIDTypeAsString()} voxels on {axes} axes; one real "
                        "number per voxel on 2 or 3 axes was expected. Export one 3-D image per channel.")
    header = _spatial_header(image, min(axes, 3))
    voxels = _channels_first(voxels, axes, vector)
    return Content(voxels, _grid(header, voxels.shape[1:]), header, "position")


def itk_extent(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels along the file's axes (x, y, …), then their components, and spacing; no voxel is read.

    Whatever is wrong with the file raises RuntimeError.
    """
    reader = _simple_itk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return (*reader.GetSize(), reader.GetNumberOfComponents()), reader.GetSpacing()


def write_itk(labels: Integer[np.ndarray, "z y x"], grid: Grid, header: object, path: Path) -> None:
    """Labels in a SimpleITK format, on the grid of `header` where SimpleITK read it, else on `grid`.

    The file is read back, since SimpleITK neither reports every failed write nor what a format cannot hold.

    Raises
    ------
    UserError : the format cannot hold the grid (GIPL knows no direction).
    OSError : the file could not be written whole.
    """
    simple_itk = _simple_itk()
    array = labels[0] if grid.is_2d else labels
    wanted = header if isinstance(header, ItkHeader) else _itk_header(grid)
    image = simple_itk.GetImageFromArray(array)
    image.SetSpacing(wanted.spacing)
    image.SetOrigin(wanted.origin)
    image.SetDirection(wanted.direction)
    try:
        simple_itk.WriteImage(image, str(path), True)
        written = simple_itk.ReadImage(str(path))
    except RuntimeError as error:
        full = shutil.disk_usage(path.parent).free < array.nbytes
        raise OSError(errno.ENOSPC if full else errno.EIO, _last_sentence(error)) from None
    if not np.array_equal(simple_itk.GetArrayViewFromImage(written), array):
        raise OSError(errno.EIO, "the file differs from what was written")
    found = _spatial_header(written, image.GetDimension())
    if not all(np.allclose(getattr(found, name), getattr(wanted, name), atol=1e-4)
               for name in ("spacing", "origin", "direction")):
        raise UserError(f"{path.name}: this format cannot hold the image's position in space ({wanted}). "
                        "Choose .nii.gz, .nrrd or .mha.")


def _simple_itk() -> Any:  # noqa: ANN401 (SimpleITK has no types)
    """SimpleITK, imported when first needed, without its warnings on stderr."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _channels_first(voxels: np.ndarray, axes: int, vector: bool) -> Shaped[np.ndarray, "channel z y x"]:
    """SimpleITK gives ([channel,] [z,] y, x [, component])."""
    if vector:
        voxels = np.moveaxis(voxels, -1, 0)
    elif axes < 4:
        voxels = voxels[None]
    return voxels[:, None] if axes == 2 else voxels


def _spatial_header(image: Any, axes: int) -> ItkHeader:  # noqa: ANN401
    """Spacing, origin and direction of the first `axes` file axes."""
    count = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(count, count)[:axes, :axes]
    return ItkHeader(tuple(image.GetSpacing()[:axes]), tuple(image.GetOrigin()[:axes]),
                     tuple(float(value) for value in direction.ravel()))


def _grid(header: ItkHeader, shape: tuple[int, ...]) -> Grid:
    axes = len(header.spacing)
    direction, origin, spacing = np.eye(3), np.zeros(3), np.ones(3)
    direction[:axes, :axes] = np.array(header.direction).reshape(axes, axes)
    origin[:axes], spacing[:axes] = header.origin, header.spacing
    rows = (_LPS_TO_RAS[:, None] * direction)[:, ::-1] + 0.0  # + 0.0: no negative zeros
    return Grid(shape, tuple(float(value) for value in spacing[::-1]),
                cast(tuple[float, float, float], tuple(float(value) for value in _LPS_TO_RAS * origin + 0.0)),
                cast(Direction, tuple(tuple(float(value) for value in row) for row in rows)), is_2d=axes == 2)


def _itk_header(grid: Grid) -> ItkHeader:
    axes = 2 if grid.is_2d else 3
    direction = (_LPS_TO_RAS[:, None] * np.array(grid.direction)[:, ::-1])[:axes, :axes]
    origin = _LPS_TO_RAS * np.array(grid.origin)
    return ItkHeader(grid.spacing[::-1][:axes], tuple(float(value) for value in origin[:axes]),
                     tuple(float(value) for value in direction.ravel()))


def _last_sentence(error: RuntimeError) -> str:
    """ITK's messages begin with source files and addresses; the last line says what happened, or "Success"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Reason:")]
    return telling[-1].split("):")[-1].strip() if telling else "SimpleITK gives no reason"
