"""`python -m aios_kernel.mcp_front`."""

import sys

from aios_kernel.mcp_front.stdio import main

if __name__ == "__main__":
    sys.exit(main())
