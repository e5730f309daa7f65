"""Users on their way from one hub to another: what an export holds, and how it is taken in."""
