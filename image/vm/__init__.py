"""
From the container image to a virtual machine whose measurement covers all of it.

The container's file system becomes a squashfs behind dm-verity, whose root hash stands on the kernel's
command line; kernel, initrd and command line become one EFI program; that program and the volumes become a
disk. `build.py` joins the parts, each of which has a module; the same inputs give the same bytes. What the
hardware will say of the result is `image/measure`'s subject. `python -m image.vm --help`.
"""
