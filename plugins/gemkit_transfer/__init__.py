"""Knowledge transfer from a teacher to a student."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_transfer.auxiliary_head import AuxiliaryHeadTransfer
    from gemkit_transfer.distill import Distill
    from gemkit_transfer.parameter_sharing import ParameterSharing
    from gemkit_transfer.representation import Representation
    from gemkit_transfer.several import Several
    from gemkit_transfer.student_adapter import StudentAdapter

    return [Distill, AuxiliaryHeadTransfer, StudentAdapter, Representation, ParameterSharing, Several]
