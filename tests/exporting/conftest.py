import numpy as np
import pytest


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth image with edges, (H, W, 3)."""
    rng = np.random.default_rng(3)
    down, across = np.mgrid[:150, :211] / 20
    pixels = 120 + 90 * np.stack([np.sin(down), np.cos(across), np.sin(down + across)], axis=-1)
    pixels[30:70, 40:120] = rng.integers(0, 256, 3)
    return np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
