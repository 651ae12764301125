"""Operations of lax in forms that are fast on CPUs, and how programs are compiled for them."""
