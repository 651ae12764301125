"""A page in the browser to try networks on photographs."""
