"""A run on real sockets behind an emulated radio: network namespaces, a user-space relay, and what it says of the simulation."""
