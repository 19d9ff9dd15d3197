"""A folder of the program's own keeps its mark for as long as anything is in it."""

import os
from unittest import mock

import pytest

from lvr_jax.files.marked import remove_marked


class Killed(BaseException):
    """Ends the removal where a signal might have."""


@pytest.mark.parametrize("moment", range(7))
def test_a_removal_that_is_cut_off_leaves_the_mark_or_nothing(tmp_path, moment):
    folder = tmp_path / "out.incomplete"
    (folder / "a" / "b").mkdir(parents=True)
    for name in (".mark", "0", "a/1", "a/b/2", "z"):
        (folder / name).write_text("")
    left, unlink, rmdir = [moment], os.unlink, os.rmdir

    def counted(call):
        def removes(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return call(*arguments, **options)
        return removes

    with mock.patch.multiple(os, unlink=counted(unlink), rmdir=counted(rmdir)), pytest.raises(Killed):
        remove_marked(folder, ".mark")
    assert (folder / ".mark").exists() or not any(folder.iterdir())
    remove_marked(folder, ".mark")
    assert not any(tmp_path.iterdir())
