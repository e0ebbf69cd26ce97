"""Steps of one pair of images at one location, as functions of a GPU program.

They follow `kernels/convolutional.py` name by name, in the order of the recursion.
"""

import os

import triton
import triton.language as tl

# The interpreter prepares itself anew at every call of a function of its own, for
# much longer than the call takes: there they stay functions of Python.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
device_function = (lambda function: function) if INTERPRETED else triton.jit

# arccos(x) / (π sqrt(1 - x)) on [0, 1] as a polynomial in 1 - x.
_SINGLE = tl.constexpr(
    (
        0.45015815152440351381,
        0.037513975889371790987,
        0.0084246799101868681217,
        0.0026301423292364728427,
        0.00042828795217216419444,
        0.0011255480143380693656,
        -0.00067978243361751848978,
        0.00039898953407886895756,
    )
)
_DOUBLE = tl.constexpr(
    (
        0.45015815807855303367,
        0.037513179839880288374,
        0.0084404654638599859191,
        0.0025120432986657556785,
        0.00085479235102181880444,
        0.00031472169062361659029,
        0.00012202546975615803289,
        0.000049337549845467556595,
        0.000019040320636756229827,
        0.000013964276685883178121,
        -0.000013628262712075721932,
        0.000044450145278061059356,
        -0.000081153887617665377596,
        0.00012093827973478794951,
        -0.00013578763924090980839,
        0.00011521738368080832267,
        -0.000071097094503276098457,
        0.000030348227573508243069,
        -8.0251643678362449281e-6,
        1.0096726458324123112e-6,
    )
)


@device_function
def arc_cosine(cosine):
    """s / π and k0 of κ."""
    size = tl.abs(cosine)
    gap = 1 - size
    root = tl.sqrt(gap)
    if cosine.dtype == tl.float64:
        angle = gap * _DOUBLE[19]
        for k in tl.static_range(18, 0, -1):
            angle = (angle + _DOUBLE[k]) * gap
        angle = (angle + _DOUBLE[0]) * root
    else:
        angle = gap * _SINGLE[7]
        for k in tl.static_range(6, 0, -1):
            angle = (angle + _SINGLE[k]) * gap
        angle = (angle + _SINGLE[0]) * root
    sine = root * tl.sqrt(1 + size) * 0.31830988618379067154
    return sine, tl.where(cosine < 0, angle, 1 - angle)


@device_function
def bounded_cosine(covariance, scale, below):
    """κ in [-1, 1]; 1 where it is 1 but for rounding, 0 where a patch is blank."""
    cosine = tl.where(scale > 0, covariance / scale, 0.0)
    cosine = tl.where(cosine > below, 1.0, cosine)
    return tl.where(cosine < -1, -1.0, cosine)


@device_function
def relu(s, theta, a, b, below):
    """S' and Θ' of one pair."""
    scale = a * b
    cosine = bounded_cosine(s, scale, below)
    sine, k0 = arc_cosine(cosine)
    return scale * (sine + k0 * cosine), k0 * theta


@device_function
def derive_nngp(d, s, a, b, below):
    """Derivatives by S, and by r times b, from the one by S'."""
    cosine = bounded_cosine(s, a * b, below)
    sine, k0 = arc_cosine(cosine)
    return d * k0, d * sine * b


@device_function
def derive_ntk(d, d_theta, s, theta, a, b, below, floor):
    """Derivatives by S, Θ, and by r times b, from those by S' and Θ'."""
    scale = a * b
    cosine = bounded_cosine(s, scale, below)
    sine, k0 = arc_cosine(cosine)
    # 1 / (π² s r) is 0 where patches are blank, or parallel to rounding.
    regular = (sine > floor) & (scale > 0)
    slope = 0.10132118364233777144 / tl.where(regular, sine * scale, 1.0)
    through_k0 = tl.where(regular, d_theta * theta * slope, 0.0)
    d_scale = d * sine - through_k0 * cosine
    d_theta = d_theta * k0
    # Θ = window sum of Θ' + S
    d_covariance = d * k0 + through_k0 + d_theta
    return d_covariance, d_theta, d_scale * b
