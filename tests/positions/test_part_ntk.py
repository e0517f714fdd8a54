import math

from tests.positions.closed_form import HEAD_DIM, ORIGINAL_LEN, THETA, assert_frequencies, plain


def ends(fast, slow):
    def plane(rotations):
        return HEAD_DIM * math.log(ORIGINAL_LEN / (2 * math.pi * rotations)) / (2 * math.log(THETA))

    return max(math.floor(plane(fast)), 0), min(math.ceil(plane(slow)), HEAD_DIM - 1)


def test_two_ramps_as_released():
    """inv_freq = lin (1 - m) + ntk m with m = 1 below beta's ramp; then = that (1 - m') + base m' below gamma's."""
    factor = 8.0

    def mask(i, low, high):
        return 1 - min(max((i - low) / (high - low), 0.0), 1.0)

    def expected(i):
        linear, base = plain(i) / factor, plain(i)
        ntk = math.pow(THETA * factor ** (HEAD_DIM / (HEAD_DIM - 2)), -2 * i / HEAD_DIM)
        m = mask(i, *ends(1.25, 0.75))
        value = linear * (1 - m) + ntk * m
        m = mask(i, *ends(16, 2))
        return value * (1 - m) + base * m

    assert_frequencies([dict(name="part_ntk", factor=factor)], expected, rtol=3e-7)
    # Within Llama 2's ends all three regimes are met.
    assert ends(16, 2)[0] > 5 and ends(1.25, 0.75)[1] < 60
