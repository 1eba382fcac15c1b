"""Dense upsampling against a loop, in the documented order of channels."""

import jax.numpy as jnp
import numpy as np
import pytest

from dilax.ops import depth_to_space


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("classes", [1, 5])
def test_it_is_a_loop_over_cells_classes_and_places(factor, classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, classes * factor**2)).astype("f4")
    expected = np.full((2, 3 * factor, 4 * factor, classes), np.nan, "f4")
    for b, i, j, k, dy, dx in np.ndindex(2, 3, 4, classes, factor, factor):
        channel = k * factor**2 + dy * factor + dx
        expected[b, i * factor + dy, j * factor + dx, k] = x[b, i, j, channel]
    np.testing.assert_array_equal(depth_to_space(jnp.asarray(x), factor), expected)


def test_it_is_the_pixel_shuffle_of_pytorch(torch):
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 18)).astype("f4")
    twin = torch.nn.functional.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), 3)
    ours = depth_to_space(jnp.asarray(x), 3)
    np.testing.assert_array_equal(ours, twin.permute(0, 2, 3, 1))


@pytest.mark.parametrize("factor", [0, 3])
def test_other_factors_are_refused(factor):
    with pytest.raises(ValueError, match=f"factor={factor}: 8 channels"):
        depth_to_space(jnp.zeros((1, 2, 2, 8)), factor)
