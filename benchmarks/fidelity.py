"""How good nano is: everything that the README says of it, measured by one command.

    python benchmarks/fidelity.py --corpus runs/nano/corpus --weights runs/nano [--parts table,...]
        [--episodes N] [--json FILE] [--readme README.md] [--picture docs/nano.jpg]

The corpus is a simulated one (`make nano` makes it); what is scored is its test split, whose scenes
no training saw. Parts:

    table       nano, with the measured and the wrist head's pose, against what it must beat: the
                mean picture, the resized anchor, the nearest training frame, the bare projection,
                Pix2Pix (trained here), and its own generator without condition map
    ablation    the rows of WristWorld's table 4 at nano's size, each trained for the same steps
    mount       the wrist head's poses against a rigid mount, solved and true
    confidence  how well wrist_confidence ranks frames, and what the best half gains
    temporal    flicker against the same weights frame by frame, and seams where clips meet

Each part is `wristaugment evaluate` with --json, kept in --out, so that an interrupted call goes
on. Every bound is printed with the figure that it is held against; exit status 1 if one is missed.
"""
