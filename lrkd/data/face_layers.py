"""One batch of rendered faces: soft layers over canonical coordinates, differentiable in every number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lrkd.data import soft_shapes as soft
from lrkd.data.face_quantities import BLOOD, LIGHT_SKIN, MELANIN, MOLE_SEATS, RGB, SKIN_BANDS

if TYPE_CHECKING:
    from lrkd.data.renderer import FaceModel


class Face:
    """One chunk on its way to an image: coordinates first, then one method a part; fields die with their method."""

    def __init__(self, model: FaceModel, identity: Tensor, nuisance: Tensor, size: int) -> None:
        self.model, self.like, self.size = model, identity, size
        self.p = p = model.quantities(identity, nuisance)
        axis = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, dtype=identity.dtype, device=identity.device)
        self.y0, self.x0 = axis[:, None], axis[None, :]
        zoom = torch.exp(-p["scale"])
        self.px = px = 2 / size * zoom
        # Pose: image -> head plane, then two fixed-point steps against the parallax of the head's depth.
        c, s = torch.cos(p["roll"]) * zoom, torch.sin(p["roll"]) * zoom
        self.xs, self.ys = self.x0 - p["shift_x"], self.y0 - p["shift_y"]
        a, b = c * self.xs + s * self.ys, c * self.ys - s * self.xs
        cy, sy, cp, sp = torch.cos(p["yaw"]), torch.sin(p["yaw"]), torch.cos(p["pitch"]), torch.sin(p["pitch"])
        self.turn = (cy * cp, sy, sp)
        u, v = a, b
        for _ in range(2):
            depth = 0.34 * soft.bump(u, v + 0.05, 0.42, 0.6) + 0.09 * soft.bump(u, v - p["nose_length"], 0.09, 0.14)
            u, v = (a - sy * depth) * (1 / cy), (b - sp * depth) * (1 / cp)
        self.u, self.v = u, v
        self.au = torch.sqrt(u * u + 1e-5)  # left and right folded together
        self.side = u / self.au
        # The outline: a squircle that tapers to jaw and forehead.
        self.jaw = p["chin"] + 0.05 * p["mouth_open"]
        taper = 1 - p["jaw_taper"] * soft.step(v - 0.36, 8.0) - 0.09 * soft.step(-0.42 - v, 10.0)
        vc = v + 0.06
        up, down = vc.clamp(max=0) * (1 / (-0.06 - p["skull_top"])), vc.clamp(min=0) * (1 / (self.jaw + 0.06))
        square = p["squareness"].clamp(0, 0.8)
        self.radius = soft.squircle((u / (taper * p["head_width"])).square(), up * up + down * down, square * square)
        self.head = soft.edge((1 - self.radius) * 0.5, px)
        # Features in their own coordinates: eye half widths; mouth half widths; below the nose tip.
        self.epx = px / p["eye_size"]
        self.es = (self.au - p["eye_spacing"]) * (1 / p["eye_size"])
        self.et = (v - p["eye_height"]) * (1 / p["eye_size"]) + p["eye_tilt"] * self.es
        self.mw = p["mouth_width"] * (1 + 0.14 * p["smile"] - 0.10 * p["mouth_open"])
        self.ms2 = (u * (1 / self.mw)).square()
        self.mt = v - p["mouth_height"] + 0.030 * p["smile"] * (self.ms2 - 0.5) / (1 + 0.2 * self.ms2)
        self.nv = v - p["nose_length"]
        self.brow_v = v - p["eye_height"] + p["brow_height"] + 0.02 * p["brow_raise"]
        el, az = p["light_elevation"], p["light_azimuth"]
        self.lx, self.ly, self.lz = torch.sin(az) * torch.cos(el), -torch.sin(el), torch.cos(az) * torch.cos(el)
        self.hair_base = self._hair_colour()

    def draw(self, masks: bool) -> tuple[Tensor, dict[str, Tensor]]:
        hair, front, back, strand, rim = self._hair()
        image = self._background()
        image = torch.lerp(image, hair * 0.5, back[:, None])
        image, body = self._body(image)
        image = torch.lerp(image, self._front(strand, rim), self.head[:, None])
        image = torch.lerp(image, hair, front[:, None])
        image = self._develop(self._patch(self._glasses(image)))
        return image, self._masks(front, back * (1 - body)) if masks else {}

    def _relief(self) -> tuple[Tensor, Tensor, Tensor]:
        """-> height of the skin, blood and shadow pigments that go with it, each (N,S,S)."""
        p, u, v, au, nv, px = self.p, self.u, self.v, self.au, self.nv, self.px
        nw = p["nose_width"]
        tip = soft.bump(u, nv, 0.062, 0.056)
        wing = soft.bump(au - 0.74 * nw, nv - 0.020, 0.30 * nw, 0.032)
        down = soft.step(v - p["eye_height"] - 0.01, 20.0)
        ridge = soft.ridge(u / (0.046 + 0.08 * down * (v + 0.10)), 1.0) * soft.step(0.045 - nv, 26.0)
        ridge = ridge * (p["nose_bridge"] * (0.40 + down * (0.66 + 1.2 * v))) * soft.step(self.brow_v + 0.03, 28.0)
        fold = soft.line(au - 0.95 * nw - 0.02 - 0.55 * nv, 0.014, px) * soft.ridge(nv - 0.085, 0.07)
        fold = fold * torch.sigmoid(p["nasolabial"] + 1.1 * p["smile"])
        cheek = soft.bump(au - 0.33, v - 0.16 + 0.02 * p["smile"], 0.12, 0.10)
        socket = soft.bump(au - 0.215, v - p["eye_height"] + 0.015, 0.11, 0.058)
        lines = torch.sigmoid(p["forehead_lines"] + 0.8 * p["brow_raise"])
        wrinkle = torch.sin(v * 88 + 2.2 * au) * soft.bump(u, v + 0.36, 0.22, 0.055) * lines
        height = (
            0.42 * torch.sqrt(soft.softplus(1 - self.radius.square(), 0.15) + 0.01)
            + 0.9 * ridge
            + p["nose_tip"] * tip
            + 0.036 * wing
            + (p["cheekbones"] + 0.012 * p["smile"]) * cheek
            - 0.048 * socket
            + 0.022 * soft.bump(au - 0.20, self.brow_v, 0.15, 0.045)
            + 0.020 * soft.bump(u, self.mt - 0.030 - 0.04 * p["mouth_open"], 0.62 * self.mw, 0.022)
            + 0.012 * soft.bump(u, self.mt + 0.022, 0.55 * self.mw, 0.02)
            + 0.030 * soft.bump(u, v - self.jaw + 0.115, 0.12, 0.06)
            - 0.018 * soft.bump(au - 0.36, v - 0.42, 0.10, 0.12)
            - 0.022 * fold
            + 0.006 * wrinkle
        )
        blush = soft.bump(au - 0.30, v - 0.20, 0.12, 0.10)
        blood = p["flush"] * (0.5 + 1.2 * blush + 0.8 * tip + 0.6 * wing)
        shadow = (
            1.0 * soft.bump(au - 0.48 * nw, nv - 0.042, 0.019, 0.009)
            + 0.18 * soft.bump(u, nv - 0.066, nw * 0.7, 0.018)
            + 0.55 * fold
            + 0.20 * socket
            + 0.28 * soft.line(au - nw * 1.0, 0.010, px) * soft.ridge(nv - 0.018, 0.030)
            + 0.20 * soft.bump(u, self.mt - 0.085 - 0.07 * p["mouth_open"], 0.07, 0.018)
            + 0.16 * wrinkle
        )
        return height, blood, shadow

    def _light(self, height: Tensor) -> tuple[Tensor, Tensor]:
        """Height -> light (N,3,S,S), wrapped so that the terminator is soft and reddish, and the shine (N,S,S)."""
        flat, sy, sp = self.turn
        h = height * flat - self.u * sy - self.v * sp
        k = 0.5 / self.px
        hx, hy = (h[:, :, 2:] - h[:, :, :-2]) * k, (h[:, 2:] - h[:, :-2]) * k
        hx = torch.cat([hx[:, :, :1], hx, hx[:, :, -1:]], 2)
        hy = torch.cat([hy[:, :1], hy, hy[:, -1:]], 1)
        inv = torch.rsqrt(1 + hx * hx + hy * hy)
        side = self.lx * hx + self.ly * hy
        facing = (self.lz - side) * inv
        # The half vector between light and viewer; exp(k (x - 1)) is close to the power x^k.
        shine = torch.exp2(36 * ((1 + self.lz - side) * inv * torch.rsqrt(2 + 2 * self.lz) - 1))
        ambient = 0.26 + 0.09 * (hy * inv)
        wraps = [(w, 1.0 / (1 + w)) for w in (0.40, 0.30, 0.25)]
        return soft.rgb(*(ambient + 1.06 * soft.softplus(facing * k_ + w * k_, 0.12) for w, k_ in wraps)), shine

    def _skin_colour(self, melanin: Tensor, blood: Tensor, shadow: Tensor | float) -> Tensor:
        """Pigments (N,h,w) -> reflectance (N,3,h,w): each absorbs per channel."""
        tone, table = self.p["undertone"], zip(LIGHT_SKIN, MELANIN, BLOOD, (0.08, 0.0, -0.55), strict=True)
        return soft.rgb(
            *(
                torch.exp2((base + m * melanin + r * blood + 1.1 * shadow - t * tone) * -1.4427)
                for base, m, r, t in table
            )
        )

    def _front(self, strand: Tensor, rim: Tensor) -> Tensor:
        """The face without the hair of the head, as light (N,3,S,S)."""
        p, u, v = self.p, self.u, self.v
        height, blood, shadow = self._relief()
        light, shine = self._light(height)
        weights = torch.cat([p[f"texture{i}"][:, 0] for i in range(1, len(SKIN_BANDS) + 1)], 1)
        texture = self.model.look_up(weights @ self.model.constant("skin", self.like, self.size), u, v)
        freckle = torch.sigmoid(p["freckles"] + 2.2 * texture) * soft.bump(u, v - 0.12, 0.30, 0.13)
        melanin = soft.softplus(p["melanin"], 0.1) + 0.034 * texture + 0.20 * freckle
        seats = self.model.constant("seats", self.like)
        tight = 1 / (0.011**2 + 0.1 * self.px * self.px)
        mole = torch.zeros_like(u)
        for i in range(len(MOLE_SEATS)):
            du, dv = u - seats[i, 0] - p[f"mole{i + 1}_u"], v - seats[i, 1] - p[f"mole{i + 1}_v"]
            mole = mole + torch.exp2(torch.addcmul(du * du, dv, dv) * (-0.7213 * tight))
        lips, inside, gape, seam = self._mouth(light)
        eyes, opening, lash, creases = self._eyes(light)
        shadow = shadow + creases + 0.10 * lips + seam + p["moles"] * (0.011**2 * tight) * 1.1 * mole
        shadow = shadow + 0.35 * soft.step(rim - 0.95, 16.0)  # under the hair
        skin = self._skin_colour(melanin, blood - 0.04 * texture + lips * p["lip_colour"] * 1.5, shadow)
        whiskers, brows = self._whiskers(lips, strand), self._brows(strand)
        face = skin * light + (0.085 * (1 - whiskers) * shine)[:, None]
        face = torch.lerp(face, eyes, opening[:, None])
        face = torch.lerp(face, gape, inside[:, None])
        face = torch.lerp(face, self.hair_base * 0.33 * light, (whiskers * 0.92)[:, None])
        face = torch.lerp(face, self.hair_base * 0.38, brows[:, None])
        return face * (1 - lash)[:, None]

    def _eyes(self, light: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> eyeball (N,3,S,S), the lids' opening, lashes, and shadow of lid creases, bags and crow's feet."""
        p, es, et, epx = self.p, self.es, self.et, self.epx
        es2 = es * es
        inner = 1 - es2
        height = p["eye_opening"] * (1 - 0.95 * p["blink"]) * (1 + 0.12 * p["brow_raise"] - 0.08 * p["smile"])
        lid = et + height * inner * (1 - 0.22 * es)
        floor = et - (0.22 - 0.05 * p["smile"] - 0.16 * p["blink"]) * inner * (1 + 0.15 * es)
        opening = soft.edge(lid, epx, 0.03) * soft.edge(-floor, epx, 0.03)
        width = soft.plateau(es, 1.16)
        lash = soft.line(lid - 0.01, 0.085, epx) * width * (p["lashes"] * (1 - 0.4 * p["blink"]))
        lash = lash + 0.30 * soft.line(floor, 0.055, epx) * width * p["lashes"]
        creases = 0.42 * soft.line(lid + p["lid_crease"] * (0.6 + 0.4 * inner), 0.07, epx) * width
        creases = creases + (0.45 * torch.sigmoid(p["eye_bags"])) * soft.line(floor - 0.30, 0.10, epx) * width
        feet = torch.sin(13 * et + 2 * es) * soft.bump(es - 1.55, et, 0.28, 0.40)
        creases = creases + (0.22 * torch.sigmoid(p["crows_feet"] + 1.5 * p["smile"])) * feet
        gx, gy = es - self.side * p["gaze_x"], et - p["gaze_y"] + 0.06
        r = torch.sqrt(gx * gx + gy * gy + 1e-4)
        iris, pupil = soft.edge(p["iris_size"] - r, epx, 0.025), soft.edge(0.20 - r, epx, 0.03)
        m = soft.softplus(p["iris_melanin"], 0.2)
        colour = soft.rgb(*(torch.exp(-a - b * m) for a, b in ((1.75, 0.42), (1.10, 1.30), (0.62, 2.6))))
        dim = 1 - 0.55 * torch.exp2(soft.softplus(lid, 0.05) * -8.5)  # the shadow of the upper lid
        ball = torch.lerp((0.74 - 0.16 * es2)[:, None], colour * (0.55 + 1.1 * r)[:, None], iris[:, None])
        ball = ball * (dim * (1 - 0.95 * pupil) * (1 - 0.6 * soft.line(r - p["iris_size"], 0.08, epx)))[:, None]
        glint = soft.bump(gx - self.side * (0.07 + 0.16 * self.lx), gy + 0.17, 0.085, 0.085)
        return ball * (0.45 + 0.55 * light) + 0.8 * glint[:, None], opening, lash.clamp(max=0.95), creases

    def _mouth(self, light: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> lips, the gap between them, what it shows (N,3,S,S), and the seam's shadow."""
        p, mt, ms2, px = self.p, self.mt, self.ms2, self.px
        inner = 1 - ms2
        wide = 0.070 * soft.softplus(p["mouth_open"], 0.05) + 0.004 * soft.softplus(p["smile"], 0.2)
        gap = wide * inner
        roof = mt + 0.25 * gap
        bow = 1 - 0.24 * soft.ridge(self.u, 0.02) + 0.10 * soft.ridge(self.au - 0.045, 0.021)
        top = roof + p["upper_lip"].clamp(min=0.008) * bow * inner
        bottom = gap - mt + p["lower_lip"].clamp(min=0.012) * inner * (1.2 - 0.2 * ms2)
        lips = soft.edge(top, px, 0.006) * soft.edge(bottom, px, 0.008)
        inside = (
            soft.edge(roof - 0.002, px, 0.003)
            * soft.edge(gap - mt - 0.004, px, 0.003)
            * soft.plateau(self.u, 0.95 * self.mw)
        )
        inside = inside * (1 - torch.exp(-(wide / 0.01).square()))
        teeth = soft.edge(0.020 + 0.010 * p["smile"] - roof, px, 0.003) * soft.plateau(self.u, self.mw)
        seam = 0.85 * soft.line(mt - 0.3 * gap, 0.0075, px) * torch.exp2(-2.0 * (ms2 * ms2 * ms2))
        gape = soft.rgb(0.09 + 0.55 * teeth, 0.03 + 0.56 * teeth, 0.03 + 0.50 * teeth) * (0.40 + 0.45 * light)
        return lips, inside, gape, seam

    def _brow_area(self) -> Tensor:
        p = self.p
        s = (self.au - 0.205 - 0.06 * (p["eye_spacing"] - 0.226)) * 8.0
        rise = p["brow_arch"] * (1 - (s - 0.25).square()) + 0.125 * p["brow_tilt"] * s
        d = self.brow_v + rise + 0.0105 * p["brow_raise"] * (0.3 - s)
        d = d / (torch.sqrt(p["brow_thickness"].square() + 0.02 * self.px.square()) * (1.10 - 0.32 * s))
        return soft.plateau(d, 1.0) * torch.exp2(-1.4 * ((s - 0.05) * 0.95).square().square().square())

    def _brows(self, strand: Tensor) -> Tensor:
        return (self._brow_area() * self.p["brow_density"].clamp(0, 0.95) * (1 + 0.03 * strand)).clamp(0, 1)

    def _whiskers(self, lips: Tensor, strand: Tensor) -> Tensor:
        p, u = self.p, self.u
        growth = 2.0 * (p["beard"] + p["beard_change"])
        start = 0.31 + 0.11 * soft.plateau(u, 0.22) - 1.3 * (self.au - 0.31).clamp(min=0)
        beard = soft.step(self.v - start, 28.0) * torch.sigmoid(growth + 0.12 * strand)
        above = soft.bump(u, self.mt + 0.052, 0.11, 0.024) * torch.sigmoid(growth + 1.3 * p["moustache"] + 1.2)
        return (beard + above - beard * above) * (1 - lips) * (0.88 + 0.08 * strand).clamp(0, 1)

    def _hair_colour(self) -> Tensor:
        p = self.p
        m, r = p["hair_melanin"].clamp(0.0, 1.4), soft.softplus(p["hair_red"], 0.1)
        pigment = ((0.38, 2.1, 0.05), (0.72, 2.3, 0.75), (1.35, 2.0, 1.0))
        colour = soft.rgb(*(torch.exp(-a - b * m - c * r) for a, b, c in pigment))
        return torch.lerp(colour, torch.full_like(colour, 0.5), torch.sigmoid(p["hair_grey"])[:, None])

    def _hair(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """-> hair (N,3,S,S), its part before and behind the head, strands, and the face opening's radius.

        An outer dome minus the opening for the face, down to a length; strands run along the dome's meridians.
        """
        p, u, v, px = self.p, self.u, self.v, self.px
        long = p["hair_length"] + p["hair_length_change"] - 0.9
        length = -0.10 + 1.30 * torch.sigmoid(2.2 * long)
        bald, curl = torch.sigmoid(2.2 * (p["baldness"] - 0.3)), torch.sigmoid(2.5 * p["curl"])
        fringe = torch.sigmoid(2.5 * (p["fringe"] - 0.7)) * (1 - bald)
        volume = p["hair_volume"].clamp(min=0.025) * (1 - 0.7 * bald) + 0.04 * curl * (1 - bald)
        vh = v + 0.10
        dome = (vh.clamp(max=0) * (1 / (-0.10 - p["skull_top"] + volume))).square()
        full = torch.sigmoid(3 * (long + 0.9))
        wide = p["head_width"] + volume * (0.30 + 0.45 * full + 0.4 * curl) + (0.06 * full) * soft.step(vh, 7.0)
        across = u / wide
        table = self.model.constant("hair", self.like)[None]
        sweep = 2.2 * p["parting"] * (1 - full)
        comb = 1.25 * across * torch.rsqrt(soft.softplus(1 - dome, 0.35)) + sweep * v
        strand = self.model.look_up(table, comb, 0.2 * v)
        coil = self.model.look_up(table, 0.8 * u + p["curl"], 0.8 * v)
        pale = float(np.sinc(min(1.0, 34 / self.size)))  # a pixel averages the strands in it
        strand = torch.lerp(strand, 1.2 * coil, curl) * pale
        across2 = across * across
        outer = soft.edge((1 - torch.sqrt(across2 + dome + 1e-6)) * 0.55 + 0.012 * curl * coil, px, 0.007)
        line = p["hairline"] + 0.25 * fringe + 0.7 * p["parting"] * u - 0.42 * bald
        line = line - (0.02 * (1 - fringe)) * soft.ridge(u - 0.5 * p["parting"], 0.09)
        seat = 0.10
        over = ((v - seat).clamp(max=0) / (line - seat)).square()
        rim = soft.squircle((u * (1 / (p["head_width"] * (0.93 - 0.07 * full)))).square(), over, 0.62 - 0.3 * fringe)
        front = outer * soft.edge((rim - 1) * 0.42 + (0.006 + 0.010 * fringe) * strand, px, 0.012)
        ends = length - v + 0.02 * strand
        front, back = front * soft.step(ends, 36.0), outer * soft.step(ends, 30.0)
        lit = self.lx * 1.1 * across + self.ly * 1.1 * v + 0.75 * self.lz
        lit = (0.24 + 0.80 * soft.softplus(lit * torch.rsqrt(1 + 0.4 * (u * u + v * v)), 0.2)) * (1 + 0.17 * strand)
        sheen = soft.ridge(across2 + dome - 0.60 + 0.03 * strand, 0.12) * (0.10 + 0.05 * strand) * (1 - 0.6 * curl)
        hair = self.hair_base * lit[:, None] + (sheen[:, None] * (0.25 + self.hair_base))
        return hair, front, back, strand, rim

    def _background(self) -> Tensor:
        p, x, y = self.p, self.x0, self.y0
        ramp = torch.sigmoid(1.2 * (x + y) + 0.5 * p["blob1"])
        blobs = 0.25 * p["blob2"] * soft.bump(x - 0.7, y + 0.3 * p["blob3"], 0.35, 0.5)
        blobs = blobs + 0.25 * p["blob4"] * soft.bump(x + 0.7, y - 0.3 * p["blob1"], 0.3, 0.6)
        tones = soft.rgb(*(torch.lerp(p[f"background_{c}"], p[f"background2_{c}"], ramp) for c in RGB))
        tones = torch.lerp(tones, tones.mean(1, keepdim=True), 0.6)
        return (0.06 + 0.70 * tones).square() * torch.exp2(blobs)[:, None] * 1.1

    def _body(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Neck, clothes and ears over the image; -> image and where they are."""
        p, u, v, au, px = self.p, self.u, self.v, self.au, self.px
        plain = self._skin_colour(soft.softplus(p["melanin"], 0.1), 0.8 * p["flush"], 0.0)
        nx = (u * (1 / p["neck"])).clamp(-2, 2)
        lit = 0.26 + 0.62 * soft.softplus(0.75 * self.lz + 0.55 * self.lx * nx - 0.25 * self.ly, 0.2)
        lit = lit * (0.48 + 0.52 * soft.step(v - self.jaw - 0.13 + 0.35 * u * u, 15.0)) * (1 - 0.08 * nx * nx)
        neck = soft.edge(p["neck"] + 0.5 * soft.softplus(v - 0.84, 0.08) - au, px, 0.006) * soft.edge(
            v - 0.35, px, 0.02
        )
        image = torch.lerp(image, plain * lit[:, None], neck[:, None])
        collar = (u * (1 / (p["neck"] * 1.08))).square() + ((v - 0.80) * (1 / 0.15)).square()
        cloth = soft.edge(v - 0.83 - 0.32 * u * u, px, 0.006) * soft.edge((collar - 1) * 0.12, px, 0.006)
        lit = (0.42 + 0.45 * self.lz + 0.22 * self.lx * u) * (1 - 0.25 * soft.bump(u, v - 0.84, 0.4, 0.07))
        fabric = soft.rgb(*(0.07 + 0.6 * p[f"clothes_{c}"] for c in RGB))
        fabric = torch.lerp(fabric, fabric.mean(1, keepdim=True), 0.45).square()
        image = torch.lerp(image, fabric * lit[:, None], cloth[:, None])
        ex = (au - p["head_width"] * 0.98) * (1 / 0.060)
        ey = (v - 0.05) * (1 / 0.12) + 0.12 * ex
        ear = soft.edge((1 - torch.sqrt(ex * ex + ey * ey + 1e-6)) * 0.06, px)
        lit = (0.26 + 0.6 * soft.softplus(0.7 * self.lz + 0.5 * self.lx * self.side, 0.2)) * (
            1 - 0.45 * soft.bump(ex - 0.15, ey, 0.45, 0.5)
        )
        image = torch.lerp(image, plain * lit[:, None], ear[:, None])
        return image, (neck + cloth + ear).clamp(0, 1)

    def _glasses(self, image: Tensor) -> Tensor:
        p, au, px = self.p, self.au, self.px
        y = self.v - p["eye_height"]
        rx = 1.42 * p["eye_size"]
        gs, gv = (au - p["eye_spacing"]) * (1 / rx), (y - 0.02) * (1 / (1.12 * p["eye_size"]))
        r = soft.squircle(gs.square(), gv.square(), 0.8 * p["glasses_shape"])
        frame = soft.line(r - 1, 0.085, px / p["eye_size"])
        frame = frame + soft.line(y + 0.01 - 0.3 * (au * au), 0.011, px) * soft.edge(p["eye_spacing"] - rx - au, px)
        frame = frame + soft.line(y + 0.02, 0.010, px) * soft.edge(au - p["eye_spacing"] - rx, px) * self.head
        lens = soft.edge((1 - r) * p["eye_size"], px) * p["glasses"]
        glare = 0.10 * lens * soft.ridge(gs + 0.8 * gv - 0.5, 0.2)
        image = image * (1 - 0.10 * lens)[:, None] + glare[:, None]
        tone = 0.03 + 0.45 * p["glasses_tone"].square()
        return torch.lerp(image, tone[:, None], (frame.clamp(max=1) * (0.92 * p["glasses"]))[:, None])

    def _patch(self, image: Tensor) -> Tensor:
        p = self.p
        c, s = torch.cos(p["occluder_angle"]), torch.sin(p["occluder_angle"])
        qx, qy, half = self.xs - p["occluder_x"], self.ys - p["occluder_y"], 1 / p["occluder_size"]
        x, y = (c * qx + s * qy) * half, (c * qy - s * qx) * (half / 0.62)
        x4, y4 = x.square().square(), y.square().square()
        patch = torch.exp2(-(x4 + y4).square()) * p["occluder"]
        colour = soft.rgb(*(0.08 + 0.65 * p[f"occluder_{k}"] for k in RGB))
        colour = torch.lerp(colour, colour.mean(1, keepdim=True), 0.4).square()
        return torch.lerp(image, colour * (0.85 - 0.2 * y.clamp(-1, 1))[:, None], patch[:, None])

    def _develop(self, image: Tensor) -> Tensor:
        """The camera: light colour, exposure, a film curve, sensor noise."""
        p = self.p
        warm, green, e = p["light_warm"], p["light_green"], p["exposure"]
        gain = -2.2 * torch.exp(soft.rgb(e + warm - 0.5 * green, e + green, e - warm - 0.5 * green))
        image = torch.sqrt(1.0001 - torch.exp2(gain * image.clamp(min=0)))
        weights = torch.cat([p[f"noise{i}"][:, 0] for i in range(1, 9)], 1)
        weights = weights * torch.rsqrt((weights * weights).sum(1, keepdim=True) + 1e-6) * p["noise"][:, 0]
        grain = weights @ self.model.constant("noise", self.like, self.size)
        return (image + grain.reshape(image.shape)).clamp(0, 1)

    def _masks(self, front: Tensor, back: Tensor) -> dict[str, Tensor]:
        p, v = self.p, self.v
        bridge = soft.plateau(self.u / (0.45 * p["nose_width"] + 0.5 * soft.softplus(v - p["eye_height"], 0.05)), 1.0)
        areas = {
            "eyes": soft.plateau(self.es, 1.4) * soft.plateau(self.et, 0.8),
            "brows": self._brow_area(),
            "mouth": soft.plateau(self.u, 1.02 * self.mw) * soft.plateau(self.mt - 0.01, 0.06 + 0.03 * p["mouth_open"]),
            "nose": bridge * soft.step(0.06 - self.nv, 80.0) * soft.step(v - p["eye_height"] - 0.01, 20.0),
        }
        rest = self.head * (1 - front)
        masks = {}
        for name, area in areas.items():
            masks[name] = (rest * area)[:, None]
            rest = rest * (1 - area)
        masks["skin"] = rest[:, None]
        masks["hair"] = (front + (1 - front) * back * (1 - self.head))[:, None]
        return masks
