import os
import sys

from .cli import main

if __name__ == "__main__":
    main()
    if "WORLD_SIZE" in os.environ:
        # The threads of torch.distributed abort some processes when the interpreter ends.
        sys.stdout.flush()
        os._exit(0)
