"""Every adjoint, with settings that are good for closed forms."""

from deqopt.adjoints import Adjoint, Envelope, Implicit, InputHeld, JacobianFree, Phantom, Unrolled

ADJOINTS: list[Adjoint] = [
    Envelope(),
    Implicit(tol=1e-10),
    InputHeld(tol=1e-10, max_nfe=200),
    JacobianFree(),
    Phantom(steps=20),
    Unrolled(),
    Unrolled(checkpoint=True),
]
