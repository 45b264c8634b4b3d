"""EDSR for spandrel, whose loaders know it once this module is imported.

    import clsd_train.spandrel
    model = spandrel.ModelLoader().load_from_file("student.safetensors")

Needs spandrel: ``pip install 'clsd-fast[spandrel]'``.
"""

from pathlib import Path
from typing import Any

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor
from torch import Tensor

from clsd_fast import EDSR

from .architecture import Reading
from .checkpoint import student_of
from .containers import unpack
from .errors import UserError
from .naming import is_basicsr

# Of every EDSR by EDSR-PyTorch's names, and together of no other network of its.
SIGNS = ("head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight", "tail.1.weight")
# spandrel's loaders do not say which file tensors are of.
UNNAMED = Path("the state_dict")


class EDSRArch(Architecture[EDSR]):
    """An :class:`clsd_fast.EDSR` by EDSR-PyTorch's or BasicSR's names, on images in 0..1.

    spandrel hands over tensors alone, without what a file of ours says beside them. How they are
    read is chosen as of :func:`load_student`, unless it is given: register another one for that,
    ``ArchRegistry().add(ArchSupport.from_architecture(EDSRArch(res_scale=0.1)))``.

    Args:
        res_scale: factor of each residual branch.
        value_range: value of white inside the network.
        mean_shift: whether the mean colour is taken off the image and added again.
    """

    def __init__(
        self,
        res_scale: float | None = None,
        value_range: float | None = None,
        mean_shift: bool | None = None,
    ) -> None:
        super().__init__(id="clsd_fast.EDSR", name="EDSR", detect=_is_edsr)
        given = zip(Reading._fields, (res_scale, value_range, mean_shift), strict=True)
        self._stated = {name: value for name, value in given if value is not None}

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor[EDSR]:
        """The student with these weights.

        Raises:
            UserError: as of :func:`load_student`.
        """
        student = student_of(unpack(state_dict, UNNAMED), self._stated, UNNAMED)
        return ImageModelDescriptor(
            student,
            student.state_dict(),
            architecture=self,
            purpose="SR",
            tags=[f"{student.channels}nf", f"{student.num_blocks}nb"],
            supports_half=True,
            supports_bfloat16=True,
            scale=student.scale,
            input_channels=3,
            output_channels=3,
            call_fn=_upscale,
        )


def _is_edsr(state_dict: dict[str, Any]) -> bool:
    try:
        state = unpack(state_dict, UNNAMED)
    except UserError:
        return False
    return is_basicsr(state) or all(sign in state for sign in SIGNS)


def _upscale(student: EDSR, image: Tensor) -> Tensor:
    return student(student.value_range * image) / student.value_range


MAIN_REGISTRY.add(ArchSupport.from_architecture(EDSRArch()))
