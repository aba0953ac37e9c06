"""What libraries print that a user cannot change."""

import warnings

from acoustic_scenes.packages import quieten_libraries


def test_warnings_of_libraries_about_themselves_are_not_shown():
    """Beginnings of warnings that PyTorch and accelerate gave; all others are shown."""
    silenced = [
        "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()`",
        "The input of maxpool2d is not quantized, skip to be observed",
        "`broadcast_buffers` is deprecated. Use `forward_sync_buffers` instead.",
        "Grad strides do not match bucket view strides. This may indicate grad was not created according to",
    ]
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quieten_libraries()
        for text in [*silenced, "The loss is not finite."]:
            warnings.warn(text, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["The loss is not finite."]
