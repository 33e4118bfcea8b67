"""One rank of the doctor under any launcher: ``torchrun --nproc_per_node 2 -m launch.doctor``."""

from launch.doctor.command import main

if __name__ == "__main__":
    raise SystemExit(main())
