"""The numbers that make a rendered face: what identity and nuisance mean, and their spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

BANDS = ("low", "mid", "high")
AGE_LOW, AGE_HIGH = 18.0, 78.0
PARTS = ("eyes", "nose", "mouth", "brows", "skin", "hair")


class _Quantity(NamedTuple):
    """One identity dimension: the quantity is centre + span * amplitude * z', z' = 2 tanh(z/2); `age` shifts z'."""

    name: str
    centre: float
    span: float
    unit: str
    meaning: str
    age: float = 0.0


_U = "half image widths"
_IDENTITY: Mapping[str, tuple[_Quantity, ...]] = {
    "low": (
        _Quantity("head_width", 0.555, 0.024, _U, "half width of the head at the cheekbones", 0.2),
        _Quantity("skull_top", -0.80, 0.026, _U, "height of the top of the skull (v, down)"),
        _Quantity("chin", 0.70, 0.030, _U, "height of the chin (v, down)", 0.2),
        _Quantity("jaw_taper", 0.19, 0.06, "1", "share of the width that is lost towards the jaw", -0.5),
        _Quantity("squareness", 0.30, 0.11, "1", "squareness of the outline: 0 an ellipse, 1 a square", 0.4),
        _Quantity("cheekbones", 0.045, 0.032, "1", "relief of the cheekbones", -0.2),
        _Quantity("melanin", 0.46, 0.36, "1", "melanin of the skin: 0 light, 1 dark"),
        _Quantity("undertone", 0.0, 0.16, "1", "skin undertone: below 0 cool, above 0 warm"),
        _Quantity("flush", 0.20, 0.10, "1", "redness of cheeks, nose and ears", 0.3),
        _Quantity("hair_melanin", 0.85, 0.52, "1", "melanin of the hair: 0 blond, 1 black", -0.3),
        _Quantity("hair_red", 0.16, 0.20, "1", "red pigment of the hair"),
        _Quantity("hair_grey", -3.4, 0.9, "logit", "share of grey hair", 1.9),
        _Quantity("hair_length", -0.3, 1.35, "logit", "length of the hair: below 0 short, above 1 past the jaw", -0.2),
        _Quantity("hairline", -0.545, 0.05, _U, "height of the hairline (v, down)", -0.5),
        _Quantity("baldness", -1.5, 1.6, "logit", "how far the hair has receded", 0.7),
        _Quantity("hair_volume", 0.085, 0.045, _U, "thickness of the hair over the skull", -0.2),
        _Quantity("parting", 0.0, 0.28, "1", "slant of the hairline: below 0 swept left, above 0 right"),
        _Quantity("fringe", -0.2, 1.3, "logit", "hair over the forehead"),
        _Quantity("curl", -0.8, 1.6, "logit", "curliness of the hair"),
        _Quantity("neck", 0.285, 0.030, _U, "half width of the neck", 0.2),
        _Quantity("beard", -1.9, 2.6, "logit", "density of the beard"),
        _Quantity("moustache", -1.5, 2.0, "logit", "density of the moustache, beard apart"),
    ),
    "mid": (
        _Quantity("eye_spacing", 0.226, 0.010, _U, "half distance of the eye centres"),
        _Quantity("eye_height", -0.06, 0.014, _U, "height of the eyes (v, down)"),
        _Quantity("eye_size", 0.112, 0.006, _U, "half width of an eye", -0.3),
        _Quantity("eye_tilt", 0.06, 0.065, "1", "slope of the eye axis: above 0 the outer corner is higher", -0.8),
        _Quantity("eye_opening", 0.40, 0.055, "eye half widths", "height of the upper lid", -0.5),
        _Quantity("lid_crease", 0.20, 0.055, "eye half widths", "distance of the lid crease from the lid", -0.4),
        _Quantity("iris_melanin", 0.70, 0.42, "1", "melanin of the iris: 0 blue, .5 green, 1 brown"),
        _Quantity("iris_size", 0.47, 0.022, "eye half widths", "radius of the iris"),
        _Quantity("lashes", 0.75, 0.16, "1", "darkness of the lash line", -0.5),
        _Quantity("brow_height", 0.150, 0.014, _U, "distance of the brows from the eyes", -0.7),
        _Quantity("brow_thickness", 0.023, 0.0042, _U, "half thickness of the brows", 0.3),
        _Quantity("brow_arch", 0.028, 0.014, _U, "arch of the brows"),
        _Quantity("brow_tilt", 0.00, 0.075, "1", "slope of the brows: above 0 the outer end is higher", -0.4),
        _Quantity("brow_density", 0.72, 0.13, "1", "opacity of the brows", -0.2),
        _Quantity("nose_length", 0.25, 0.018, _U, "height of the nose tip (v, down)", 0.5),
        _Quantity("nose_width", 0.098, 0.011, _U, "half width over the nostrils", 0.5),
        _Quantity("nose_bridge", 0.115, 0.020, _U, "relief of the nose bridge"),
        _Quantity("nose_tip", 0.075, 0.014, _U, "relief of the nose tip", 0.4),
        _Quantity("mouth_height", 0.425, 0.013, _U, "height of the mouth (v, down)", 0.2),
        _Quantity("mouth_width", 0.185, 0.013, _U, "half width of the mouth", 0.3),
        _Quantity("upper_lip", 0.036, 0.0075, _U, "height of the upper lip", -0.8),
        _Quantity("lower_lip", 0.048, 0.0085, _U, "height of the lower lip", -0.7),
        _Quantity("lip_colour", 0.55, 0.17, "1", "redness of the lips", -0.5),
    ),
    "high": (
        _Quantity("nasolabial", -1.4, 0.55, "logit", "depth of the folds from nose to mouth", 1.7),
        _Quantity("forehead_lines", -2.6, 0.65, "logit", "depth of the lines on the forehead", 1.9),
        _Quantity("eye_bags", -1.5, 0.55, "logit", "depth of the bags under the eyes", 1.5),
        _Quantity("crows_feet", -2.6, 0.6, "logit", "lines at the outer eye corners", 1.8),
        _Quantity("freckles", -2.6, 1.0, "logit", "density of freckles"),
        _Quantity("moles", 0.55, 0.20, "1", "darkness of the moles", 0.3),
        *(
            _Quantity(f"mole{i}_{axis}", 0.0, 0.10, _U, f"place of mole {i} from its seat in this world, {axis}")
            for i in (1, 2, 3, 4)
            for axis in ("u", "v")
        ),
        *(_Quantity(f"texture{i}", 0.0, 0.55, "1", f"weight of band-passed skin pattern {i}") for i in range(1, 6)),
    ),
}
QUANTITIES = tuple((band, q) for band in BANDS for q in _IDENTITY[band])


class _Nuisance(NamedTuple):
    """One nuisance dimension. kind: normal (clipped to the range), uniform, or chance (1 with probability sd)."""

    name: str
    kind: str
    neutral: float
    sd: float
    low: float
    high: float
    unit: str
    meaning: str


NUISANCE: tuple[_Nuisance, ...] = (
    _Nuisance("age", "uniform", 35.0, 17.3, AGE_LOW, AGE_HIGH, "years", "age"),
    _Nuisance("yaw", "normal", 0.0, 0.14, -0.6, 0.6, "rad", "turn of the head to the image's right"),
    _Nuisance("pitch", "normal", 0.0, 0.08, -0.35, 0.35, "rad", "nod of the head, down"),
    _Nuisance("roll", "normal", 0.0, 0.036, -0.3, 0.3, "rad", "tilt of the head, clockwise"),
    _Nuisance("scale", "normal", 0.0, 0.03, -0.15, 0.15, "ln", "logarithm of the size"),
    _Nuisance("shift_x", "normal", 0.0, 0.025, -0.15, 0.15, _U, "shift to the right"),
    _Nuisance("shift_y", "normal", 0.0, 0.025, -0.15, 0.15, _U, "shift down"),
    _Nuisance("smile", "normal", 0.15, 0.45, -1.0, 1.6, "1", "smile; below 0 a frown"),
    _Nuisance("mouth_open", "normal", 0.0, 0.35, 0.0, 1.2, "1", "opening of the mouth"),
    _Nuisance("brow_raise", "normal", 0.0, 0.5, -1.5, 1.5, "1", "raised or (below 0) knitted brows"),
    _Nuisance("blink", "normal", 0.0, 0.10, 0.0, 0.9, "1", "closing of the eyes"),
    _Nuisance("gaze_x", "normal", 0.0, 0.12, -0.4, 0.4, "eye half widths", "gaze to the right"),
    _Nuisance("gaze_y", "normal", 0.0, 0.05, -0.2, 0.2, "eye half widths", "gaze down"),
    _Nuisance(
        "hair_length_change", "normal", 0.0, 0.45, -2.0, 2.0, "1", "longer or shorter hair, in units of identity"
    ),
    _Nuisance("beard_change", "normal", 0.0, 0.30, -2.0, 2.0, "1", "more or less beard, in units of identity"),
    _Nuisance("light_azimuth", "normal", 0.0, 0.5, -1.3, 1.3, "rad", "light from the image's right"),
    _Nuisance("light_elevation", "normal", 0.55, 0.18, -0.2, 1.2, "rad", "light from above"),
    _Nuisance("light_warm", "normal", 0.0, 0.08, -0.3, 0.3, "ln", "light colour: red against blue"),
    _Nuisance("light_green", "normal", 0.0, 0.03, -0.15, 0.15, "ln", "light colour: green against magenta"),
    _Nuisance("exposure", "normal", 0.0, 0.16, -0.6, 0.6, "ln", "exposure"),
    _Nuisance("glasses", "chance", 0.0, 0.06, 0.0, 1.0, "opacity", "glasses"),
    _Nuisance("glasses_shape", "uniform", 0.5, 0.29, 0.0, 1.0, "1", "0 round, 1 square"),
    _Nuisance("glasses_tone", "uniform", 0.1, 0.29, 0.0, 1.0, "1", "0 dark, 1 light frame"),
    _Nuisance("occluder", "chance", 0.0, 0.10, 0.0, 1.0, "opacity", "a patch in front of the face"),
    _Nuisance("occluder_x", "uniform", 0.4, 0.4, -0.7, 0.7, _U, "its place, right"),
    _Nuisance("occluder_y", "uniform", 0.4, 0.4, -0.7, 0.7, _U, "its place, down"),
    _Nuisance("occluder_size", "uniform", 0.2, 0.06, 0.12, 0.32, _U, "half its width"),
    _Nuisance("occluder_angle", "uniform", 0.0, 0.9, -1.57, 1.57, "rad", "its turn"),
    *(
        _Nuisance(f"{what}_{c}", "uniform", v, 0.29, 0.0, 1.0, "1", f"{c} of the {long}")
        for what, long, values in (
            ("occluder", "patch", (0.3, 0.4, 0.6)),
            ("clothes", "clothes", (0.25, 0.3, 0.4)),
            ("background", "background, upper left", (0.55, 0.6, 0.65)),
            ("background2", "background, lower right", (0.4, 0.42, 0.45)),
        )
        for c, v in zip(("red", "green", "blue"), values, strict=True)
    ),
    *(_Nuisance(f"blob{i}", "normal", 0.0, 1.0, -3.0, 3.0, "1", f"blurred background shape {i}") for i in range(1, 5)),
    _Nuisance("noise", "uniform", 0.0, 0.0078, 0.0, 0.027, "1", "standard deviation of the sensor noise"),
    *(
        _Nuisance(f"noise{i}", "normal", 0.5, 1.0, -4.0, 4.0, "1", f"mixing weight {i} of the noise")
        for i in range(1, 9)
    ),
)
RGB = ("red", "green", "blue")
TEXELS = 128  # a period of the skin and hair patterns; one period spans the image
SKIN_BANDS = (5.0, 9.0, 13.0, 18.0, 24.0)  # cycles an image width
LIGHT_SKIN, MELANIN, BLOOD = (0.10, 0.36, 0.60), (0.95, 1.30, 1.65), (0.02, 0.75, 0.60)
MOLE_SEATS = ((-0.26, 0.16), (0.30, 0.22), (0.13, -0.30), (-0.14, 0.52))
